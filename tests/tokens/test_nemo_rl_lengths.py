"""Lengths as NeMo RL counts them: message by message, over the model's own template."""

import json
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.tokens.nemo_rl_lengths import LengthMeter
from gym_bridge.tokens.tokenizer import Tokenizer

USER = {"role": "user", "content": "2+2?"}
ASSISTANT = {"role": "assistant", "content": "4"}


def with_template(directory: Path, tokenizer_directory: Path, template: str | None) -> Path:
    """The fixtures' tokenizer, one id a byte of plain text where nothing merges, under another template."""
    directory.mkdir()
    (directory / "tokenizer.json").write_bytes((tokenizer_directory / "tokenizer.json").read_bytes())
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"} | ({"chat_template": template} if template else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def test_pieces_are_counted_apart_with_one_beginning_and_one_end(tmp_path, tokenizer_directory):
    meter = LengthMeter(with_template(tmp_path / "t", tokenizer_directory, PLAIN))
    tokenizer = Tokenizer(tokenizer_directory)
    # <|endoftext|> "zq\n" and "xk" <|im_end|>: no two of these bytes ever stood together in the tokenizer's corpus
    assert [len(tokenizer.encode(text)) for text in ("zq\n", "xk")] == [3, 2]
    found = meter.conversation([{"role": "user", "content": "zq"}, {"role": "assistant", "content": "xk"}])
    assert (found.num_tokens, found.rewritten) == (1 + 3 + 2 + 1, False)


def test_tools_and_the_header_of_the_answer_count(tokenizer_directory):
    meter = LengthMeter(tokenizer_directory)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    assert meter.conversation([USER, ASSISTANT], tools=tools).num_tokens > meter.conversation([USER, ASSISTANT]).num_tokens + 20
    whole = meter.conversation([USER, ASSISTANT]).num_tokens
    assert meter.prompt([USER]) == whole - len(Tokenizer(tokenizer_directory).encode("4")) - 1  # all but "4<|im_end|>"


def test_a_template_that_drops_earlier_reasoning_is_seen(tmp_path, tokenizer_directory):
    forgetful = (
        "{% for message in messages %}{% if message.role == 'assistant' and loop.last %}<think>{% endif %}"
        "{{ message['content'] }}\n{% endfor %}"
    )
    meter = LengthMeter(with_template(tmp_path / "t", tokenizer_directory, forgetful))
    assert not meter.conversation([USER, ASSISTANT]).rewritten
    assert meter.conversation([USER, ASSISTANT, USER, ASSISTANT]).rewritten


def test_what_the_template_refuses_is_a_data_error(tmp_path, tokenizer_directory):
    strict = "{% if messages[-1].role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}x"
    meter = LengthMeter(with_template(tmp_path / "t", tokenizer_directory, strict))
    with pytest.raises(DataError, match="the model's chat template cannot render it: no tools here"):
        meter.conversation([{"role": "tool", "content": "x"}, ASSISTANT])


def test_a_template_with_the_date_in_it_is_seen(tmp_path, tokenizer_directory):
    dated = with_template(tmp_path / "t", tokenizer_directory, "{{ strftime_now('%Y') }}" + PLAIN)
    assert LengthMeter(dated).dated
    assert not LengthMeter(tokenizer_directory).dated


def test_a_tokenizer_without_a_template_is_refused(tmp_path, tokenizer_directory):
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        LengthMeter(with_template(tmp_path / "t", tokenizer_directory, None))
