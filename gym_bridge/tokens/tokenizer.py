"""A tokenizer out of `tokenizer.json`, without transformers. Text never becomes a control token."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import tokenizers

from gym_bridge.errors import ConfigError
from gym_bridge.io.digests import digest_file

MAX_KNOWN_TEXTS = 1024  # whose ids are remembered: the system prompt and tools of a dataset, the turns of a conversation
MAX_KNOWN_CHARACTERS = 20_000  # of one such text


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
        self._known: dict[str, np.ndarray] = {}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`."""
        if add_special_tokens or len(text) > MAX_KNOWN_CHARACTERS:
            return self._encode(text, add_special_tokens=add_special_tokens)
        if (known := self._known.get(text)) is not None:
            return known.tolist()
        ids = self._encode(text)
        if len(self._known) >= MAX_KNOWN_TEXTS:
            self._known.clear()
        self._known[text] = np.array(ids, dtype=np.int32)
        return ids

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
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


def digest_tokenizer(directory: Path) -> str:
    """SHA-256 over the files of a model's directory that tell how text becomes tokens: tokenizer, its settings, chat templates,
    renderer."""
    total = hashlib.sha256()
    for path in sorted([*directory.glob("tokenizer*.json"), *directory.glob("*.jinja"), *directory.glob("renderer.json")]):
        total.update(path.name.encode() + bytes.fromhex(digest_file(path)))
    return total.hexdigest()


def vocabulary_size(directory: Path) -> int | None:
    """How many token ids the model in `directory` knows; None where its config does not say."""
    return _number_in_config(directory, "vocab_size")


def padding_id(directory: Path) -> int | None:
    """The id that the model in `directory` takes for padding; None where its config does not say."""
    return _number_in_config(directory, "pad_token_id")


def _number_in_config(directory: Path, key: str) -> int | None:
    file = directory / "config.json"
    try:
        config = orjson.loads(file.read_bytes()) if file.exists() else {}
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{file}: no JSON: {error.msg}") from None
    found = config.get(key, (config.get("text_config") or {}).get(key))
    return found if isinstance(found, int) else None


def _text_of(token: object) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
