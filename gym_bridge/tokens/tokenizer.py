"""A tokenizer out of `tokenizer.json`, without transformers. Text never becomes a control token."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import tokenizers

from gym_bridge.errors import ConfigError


class Tokenizer:
    """Text to ids and back; satisfies the `Tokenizer` protocol of the `renderers` package.

    `encode` reads control tokens such as `<|im_end|>` as ordinary text, so that no user, tool or model can write one: a renderer
    places them by id.
    """

    def __init__(self, directory: Path):
        file = directory / "tokenizer.json"
        if not file.exists():
            raise ConfigError(f"{directory}: no tokenizer.json there; give a Hugging Face directory")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self._tokenizer.encode_special_tokens = True
        self.name_or_path = str(directory)
        settings_file = directory / "tokenizer_config.json"
        settings = orjson.loads(settings_file.read_bytes()) if settings_file.exists() else {}
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        self.special_tokens = {name: text for name in names if (text := _text_of(settings.get(name))) is not None}
        """Texts of `bos_token`, `eos_token` and the like, as chat templates name them."""
        self.eos_token_id = self._id_of(settings.get("eos_token"))
        self.unk_token_id = self._id_of(settings.get("unk_token"))
        template_file = directory / "chat_template.jinja"
        template = template_file.read_text(encoding="utf-8") if template_file.exists() else settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = next((one["template"] for one in template if one["name"] == "default"), None)
        self.chat_template: str | None = template

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `token_ids`."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """Id of one token, None when the vocabulary does not hold it."""
        return self._tokenizer.token_to_id(tokens)

    def _id_of(self, token: object) -> int | None:
        text = _text_of(token)
        return self._tokenizer.token_to_id(text) if text is not None else None


def _text_of(token: object) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
