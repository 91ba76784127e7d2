"""Tokenizers of single bytes and the control tokens of a model family, so that every id can be read."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

QWEN3_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN3_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Tokens of Qwen3 that are not special: its tokenizer reads them in any text."""


def write_vocabulary(
    directory: Path, control: tuple[str, ...], marks: tuple[str, ...] = (), *, template: str | None = None, **settings: str
) -> Path:
    """256 bytes, then `control` and `marks` as tokens of their own."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(control))
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings}))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


def write_qwen3(directory: Path) -> Path:
    """The control tokens of Qwen3."""
    return write_vocabulary(directory, QWEN3_CONTROL, QWEN3_MARKS, template="{{ messages }}", eos_token="<|im_end|>")
