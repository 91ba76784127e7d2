"""Conversations of templates that write earlier turns anew, on byte vocabularies: every letter is a token."""

from pathlib import Path
from typing import Any

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.tokens.conversation_samples import conversation_samples
from gym_bridge.tokens.renderers import Renderer, load_renderer
from tests.tokens.vocabularies import write_qwen3, write_vocabulary

TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def thought(reasoning: str, text: str, **more: Any) -> Any:
    return {"role": "assistant", "content": text, "reasoning_content": reasoning, **more}


def call(reasoning: str) -> Any:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}]
    return thought(reasoning, "", tool_calls=calls)


OUTPUT: Any = {"role": "tool", "tool_call_id": "c", "content": "7"}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(write_qwen3(tmp_path_factory.mktemp("qwen3")), name="qwen3")


def shown(renderer: Renderer, messages: list[Any], **options: Any) -> list[str]:
    """The text of each sample, what trains in [[brackets]]."""
    texts = []
    for sample in conversation_samples(messages, renderer, **options):
        text, before = "", False
        pieces: list[int] = []
        for token, trains in [*zip(sample.token_ids.tolist(), sample.train_mask.tolist(), strict=True), (None, None)]:
            if trains != before:
                text += f"[[{renderer.tokenizer.decode(pieces)}]]" if before else renderer.tokenizer.decode(pieces)
                pieces = []
            before = trains
            pieces += [] if token is None else [token]
        texts.append(text)
    return texts


def test_an_answer_whose_reasoning_is_stripped_later_is_a_sample_of_its_own(qwen3: Renderer):
    assert shown(qwen3, [user("a"), thought("r1", "b"), user("c"), thought("r2", "d")]) == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[[<think>\nr1\n</think>\n\nb<|im_end|>]]\n",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n[[<think>\nr2\n</think>\n\nd<|im_end|>]]\n",
    ]


def test_answers_that_keep_their_reasoning_through_tool_calls_share_a_sample(qwen3: Renderer):
    chain = [user("a"), call("r1"), OUTPUT, call("r2"), OUTPUT, thought("r3", "b")]
    (text,) = shown(qwen3, chain, tools=TOOLS)
    assert text.count("[[") == 3
    assert [text.count(f"[[<think>\n{reasoning}\n</think>") for reasoning in ("r1", "r2", "r3")] == [1, 1, 1]
    first, second = shown(qwen3, [*chain, user("c"), thought("r4", "d")], tools=TOOLS)
    assert first == text
    assert second.count("[[") == 1
    assert second.endswith("[[<think>\nr4\n</think>\n\nd<|im_end|>]]\n")
    assert "r1" not in second


def test_an_answer_in_the_middle_that_alone_is_written_anew_parts_the_stretch(qwen3: Renderer):
    """Qwen3 writes empty reasoning of the last message only."""
    silent = {**call(""), "reasoning_content": None}
    chain = [user("a"), call("r1"), OUTPUT, silent, OUTPUT, thought("r3", "b")]
    first, second = shown(qwen3, chain, tools=TOOLS)
    assert [part.split("]]")[0] for part in first.split("[[")[1:]] == [
        '<think>\nr1\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>',
        '<think>\n\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>',
    ]
    assert [part.split("]]")[0] for part in second.split("[[")[1:]] == ["<think>\nr3\n</think>\n\nb<|im_end|>"]


@pytest.mark.parametrize(("count", "expected"), [(0, ["r1", "r2", "r3"]), (2, ["r2", "r3"]), (3, ["r2", "r3"]), (5, ["r3"])])
def test_every_answer_that_the_model_gave_trains_once(qwen3: Renderer, count: int, expected: list[str]):
    chat = [user("a"), thought("r1", "x"), user("b"), thought("r2", "y"), user("c"), thought("r3", "z")]
    texts = shown(qwen3, chat, num_prompt_messages=count)
    trained = [part.split("]]")[0] for text in texts for part in text.split("[[")[1:]]
    assert trained == [f"<think>\n{one}\n</think>\n\n{'xyz'[int(one[1]) - 1]}<|im_end|>" for one in expected]
    assert shown(qwen3, chat, num_prompt_messages=count, train_on="final") == texts[-1:]


CLOSED_BY_THE_NEXT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def test_a_token_that_ends_an_answer_as_the_next_one_begins_trains_in_every_sample(tmp_path: Path):
    control = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>")
    marks = ("<|observation|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    marks = (*marks, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink")
    directory = write_vocabulary(tmp_path / "glm", (*control, "<|observation|>"), marks[1:], template=CLOSED_BY_THE_NEXT)
    glm = load_renderer(directory, name="glm-4.5")
    first, second = shown(glm, [user("a"), thought("r1", "b"), user("c"), thought("r2", "d")])
    assert first.endswith("<|assistant|>[[\n<think>r1</think>\nb<|user|>]]")
    assert second.endswith("<|assistant|>[[\n<think>r2</think>\nd<|user|>]]")
    (merged,) = shown(glm, [user("a"), call("r1"), OUTPUT, thought("r2", "b")], tools=TOOLS)
    assert merged.count("[[") == 2
    assert "</tool_call><|observation|>]]" in merged


PLAIN = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}{% if m.role == 'assistant' %}</s>\n{% else %};{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def test_where_the_renderer_knows_no_mask_an_answer_is_what_follows_its_prompt(tmp_path: Path):
    directory = write_vocabulary(tmp_path / "plain", ("<s>", "</s>"), template=PLAIN, eos_token="</s>")
    plain = load_renderer(directory, name="default")
    chat = [user("a"), {"role": "assistant", "content": "b"}, user("c"), {"role": "assistant", "content": "assistant:b"}]
    assert shown(plain, chat) == ["<s>user:a;<s>assistant:[[b</s>]]\n<s>user:c;<s>assistant:[[assistant:b</s>]]\n"]
    assert shown(plain, chat, train_on="final") == ["<s>user:a;<s>assistant:b</s>\n<s>user:c;<s>assistant:[[assistant:b</s>]]\n"]


STRIPS = (
    "{% for m in messages %}<s>{{ m.role }}:{% if loop.last and m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def test_an_unknown_template_that_strips_reasoning_makes_several_samples(tmp_path: Path):
    directory = write_vocabulary(tmp_path / "strips", ("<s>", "</s>"), template=STRIPS, eos_token="</s>")
    strips = load_renderer(directory, name="default")
    assert shown(strips, [user("a"), thought("r1", "b"), user("c"), thought("r2", "d")]) == [
        "<s>user:a<s>assistant:[[(r1)b</s>]]",
        "<s>user:a<s>assistant:b</s><s>user:c<s>assistant:[[(r2)d</s>]]",
    ]


def test_a_prompt_that_does_not_begin_its_conversation_tells_no_mask(tmp_path: Path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    directory = write_vocabulary(tmp_path / "odd", ("<s>",), template=template)
    with pytest.raises(ConfigError, match="does not tell sampled tokens from those of its template; name another renderer"):
        conversation_samples([user("a"), {"role": "assistant", "content": "b"}], load_renderer(directory, name="default"))


def test_an_answer_of_no_tokens_is_nothing_to_train_on(tmp_path: Path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    directory = write_vocabulary(tmp_path / "bare", ("<s>",), template=template)
    with pytest.raises((ConfigError, DataError)):
        conversation_samples([user("a"), {"role": "assistant", "content": ""}], load_renderer(directory, name="default"))
