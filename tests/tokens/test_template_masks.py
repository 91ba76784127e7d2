"""What trains of a conversation, against texts marked by hand, and those texts against the families' own chat templates.

The templates are rendered by transformers and come from `trl`, which ships those of the hub, from `templates/` and from the house.
"""

import base64
import copy
import importlib.util
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.tokens.audit.templates import TrainedChats
from gym_bridge.tokens.chatml import TEMPLATE as CHATML_WITH_TOOLS
from gym_bridge.tokens.conversation_samples import conversation_samples
from gym_bridge.tokens.renderers import Renderer, load_renderer
from tests.tokens.template_conversations import CONVERSATIONS, SYSTEM, TOOLS, TURNS, TWO, USE, USER, answer, call
from tests.tokens.template_marks import MARKS, OSS_USE
from tests.tokens.template_stage import FAMILIES, TEMPLATES, family_renderer, marked

CASES = [(family, name) for family, texts in MARKS.items() for name in texts]
TRL = {
    "qwen3": "qwen3", "nemotron": "nemotron_3_nano", "llama": "llama3_2", "deepseek": "deepseekv3", "glm": "glm4moe",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Renderer]]:
    directories = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    return {family: (directory, family_renderer(directory, family)) for family, directory in directories.items()}


def undated(text: str) -> str:
    return re.sub(r"Current date: \S+", "Current date: DATE", text)


def samples(renderer: Renderer, messages: list[Any], tools: Any = None, **options: Any) -> tuple[str, ...]:
    return tuple(undated(marked(renderer, one)) for one in conversation_samples(messages, renderer, tools=tools, **options))


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_conversation_trains_what_is_marked_by_hand(models: Any, family: str, name: str):
    messages, tools = CONVERSATIONS[name]
    assert samples(models[family][1], messages, tools) == MARKS[family][name]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_audit_finds_every_answer_behind_its_prompt(models: Any, family: str, name: str):
    messages, tools = CONVERSATIONS[name]
    segments, wrong = TrainedChats(models[family][1]).segments({"messages": messages, "tools": tools})
    assert (len(segments), wrong) == (len(MARKS[family][name]), None)


@pytest.mark.parametrize("family", MARKS)
def test_what_only_the_final_answer_trains_is_the_last_text_with_its_last_mark(models: Any, family: str):
    *_, last = MARKS[family]["use"]
    before, mark, rest = last.rpartition("[[")
    unmarked = before.replace("[[", "").replace("]]", "")
    assert samples(models[family][1], USE, TOOLS, train_on="final") == (unmarked + mark + rest,)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_first_trained_token_follows_the_prompt_where_the_answer_extends_it(models: Any, family: str, name: str):
    messages: Any = CONVERSATIONS[name][0]
    tools = CONVERSATIONS[name][1]
    renderer, first = models[family][1], next(at for at, one in enumerate(messages) if one["role"] == "assistant")
    sample = conversation_samples(messages[: first + 1], renderer, tools=tools)[0]
    prompt = renderer.render_ids(messages[:first], tools=tools, add_generation_prompt=True)
    start = int(np.flatnonzero(sample.train_mask)[0])
    if (family, name) == ("nemotron", "two"):  # the prompt opens reasoning, and the answer has none
        assert renderer.tokenizer.decode(prompt[start - 1 :]) == "\n"
    else:
        assert (prompt, start) == (sample.token_ids[: len(prompt)].tolist(), len(prompt))


def own_template(family: str) -> str:
    if family in ("chatml", "smollm", "gpt-oss"):
        file = {"chatml": CHATML_WITH_TOOLS, "smollm": TEMPLATES / "smollm2.jinja", "gpt-oss": TEMPLATES / "gpt_oss.jinja"}[family]
        return file.read_text(encoding="utf-8")
    return trl_template(TRL[family])


def trl_template(name: str) -> str:
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        pytest.skip("trl, which ships the templates of the hub, is not installed")
    return (Path(found.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def with_argument_texts(messages: list[Any]) -> list[Any]:
    """DeepSeek's template joins arguments to a text, so they must be one."""
    copied = copy.deepcopy(messages)
    for one in (one for message in copied for one in message.get("tool_calls", ())):
        one["function"]["arguments"] = json.dumps(one["function"]["arguments"])
    return copied


def by_transformers(directory: Path, family: str, messages: list[Any], tools: Any, *, opens: bool = False) -> str:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = own_template(family)
    if family == "deepseek":
        messages = with_argument_texts(messages)
    if family == "gpt-oss":
        messages = [{"thinking" if key == "reasoning_content" else key: one[key] for key in one} for one in messages]
    variables = {"date_string": "26 Jul 2024"} if family == "llama" else {}
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=opens, **variables)
    assert isinstance(text, str)
    return text


# What the templates write themselves differs thus: GLM's leaves the end of the last answer to the next message, GPT-OSS's leaves
# the reasoning of a call out as soon as the final answer is there, SmolLM2's knows neither tools nor reasoning.
TEMPLATED = [case for case in CASES if case != ("gpt-oss", "use") and case[0] != "smollm"]


@pytest.mark.parametrize(("family", "name"), TEMPLATED)
def test_the_text_is_that_of_the_model_s_own_chat_template(models: Any, family: str, name: str):
    directory, renderer = models[family]
    messages, tools = CONVERSATIONS[name]
    for length in (at + 1 for at, one in enumerate(messages) if one["role"] == "assistant"):
        text = renderer.tokenizer.decode(renderer.render_ids(messages[:length], tools=tools))
        end = {"glm": "<|observation|>" if messages[length - 1].get("tool_calls") else "<|user|>"}.get(family, "")
        assert text == by_transformers(directory, family, messages[:length], tools) + end


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[0] not in ("deepseek", "smollm")])
def test_prompts_are_those_of_the_model_s_own_chat_template(models: Any, family: str, name: str):
    directory, renderer = models[family]
    messages, tools = CONVERSATIONS[name]
    for length in (at for at, one in enumerate(messages) if one["role"] == "assistant"):
        text = renderer.tokenizer.decode(renderer.render_ids(messages[:length], tools=tools, add_generation_prompt=True))
        assert text == by_transformers(directory, family, messages[:length], tools, opens=True)


def test_smollm_s_own_template_writes_the_same_text_without_tools(models: Any):
    directory, renderer = models["smollm"]
    plain = [USER, answer("4"), USER, answer("5")]
    assert renderer.tokenizer.decode(renderer.render_ids(plain)) == by_transformers(directory, "smollm", plain, None)


def test_glm_trains_what_trl_s_training_template_generates(models: Any):
    directory, renderer = models["glm"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    template = importlib.util.find_spec("trl.chat_template_utils")
    if template is None or not template.origin:
        pytest.skip("trl is not installed")
    tokenizer.chat_template = (Path(template.origin).parent / "chat_templates" / "glm4moe_training.jinja").read_text(
        encoding="utf-8"
    )
    for messages in (USE, TWO):
        told: Any = tokenizer.apply_chat_template(messages, tools=TOOLS, return_assistant_tokens_mask=True, return_dict=True)
        (sample,) = conversation_samples(messages, renderer, tools=TOOLS)
        assert sample.token_ids.tolist() == told["input_ids"]
        assert sample.train_mask.tolist() == [bool(one) for one in told["assistant_masks"]]


@pytest.mark.parametrize(
    ("family", "option", "text"),
    [
        ("qwen3", False, "<|im_start|>assistant\n<think>\n\n</think>\n\n[[4<|im_end|>]]\n"),
        ("qwen3", True, "<|im_start|>assistant\n[[<think>\n\n</think>\n\n4<|im_end|>]]\n"),
        ("nemotron", False, "<|im_start|>assistant\n<think></think>[[4<|im_end|>]]\n"),
        ("nemotron", True, "<|im_start|>assistant\n<think></think>[[4<|im_end|>]]\n"),
        ("glm", False, "<|assistant|>\n<think></think>[[\n4<|user|>]]"),
        ("glm", True, "<|assistant|>[[\n<think></think>\n4<|user|>]]"),
    ],
)
def test_an_empty_reasoning_block_trains_only_where_the_prompt_does_not_bring_it(
    tmp_path: Path, family: str, option: bool, text: str
):
    renderer = family_renderer(tmp_path, family, enable_thinking=option)
    (sample,) = samples(renderer, [USER, answer("4")])
    assert sample.endswith(text)


def test_the_reasoning_of_an_answer_trains_behind_the_part_that_the_prompt_shares_with_it(tmp_path: Path):
    renderer = family_renderer(tmp_path, "qwen3", enable_thinking=False)
    (sample,) = samples(renderer, [USER, answer("4", "Two and two.")])
    assert sample.endswith("<|im_start|>assistant\n<think>\n[[Two and two.\n</think>\n\n4<|im_end|>]]\n")


def chat(text: str) -> Any:
    return [SYSTEM, USER, answer(text)]


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_that_an_assistant_wrote_train_as_plain_text(models: Any, family: str):
    renderer, end = models[family][1], FAMILIES[family].eos_token
    hostile, tame = (conversation_samples(chat(text), renderer)[0] for text in (f"a{end}b", "ab"))
    assert f"a{end}b" in marked(renderer, hostile)
    assert hostile.num_trained - tame.num_trained == len(end.encode())


@pytest.mark.parametrize(
    ("family", "said"), [("llama", "only supports a single tool call"), ("gpt-oss", "does not write all of its tool calls")]
)
def test_two_calls_at_once_are_refused_where_the_template_has_one(models: Any, family: str, said: str):
    with pytest.raises(DataError, match=said):
        samples(models[family][1], TWO, TOOLS)


def test_calls_that_a_template_does_not_know_are_refused(models: Any, tmp_path: Path):
    family_renderer(tmp_path, "smollm")
    renderer = load_renderer(tmp_path, name="default")
    with pytest.raises(DataError, match="message 2: the model's chat template does not write all of its tool calls"):
        samples(renderer, USE, TOOLS)
    assert samples(renderer, [SYSTEM, USER, answer("4")])[0].endswith("<|im_start|>assistant\n[[4<|im_end|>]]\n")


def test_answers_end_with_every_token_that_the_model_s_generation_config_names(models: Any):
    renderer = models["gpt-oss"][1]
    assert sorted(renderer.get_stop_token_ids()) == sorted(
        renderer.tokenizer.convert_tokens_to_ids(token) for token in ("<|return|>", "<|endoftext|>", "<|call|>")
    )


def test_a_generation_config_that_is_no_json_is_refused(tmp_path: Path):
    family_renderer(tmp_path, "gpt-oss")
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config.json: no JSON"):
        load_renderer(tmp_path, name="default")


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """The renderer `gpt-oss` over the vocabulary of harmony, whose digest the package checks, so that no small one will do."""
    file = Path(os.environ.get("TIKTOKEN_ENCODINGS_BASE", "/nowhere")) / "o200k_base.tiktoken"
    if not file.exists():
        pytest.skip("TIKTOKEN_ENCODINGS_BASE names no directory with o200k_base.tiktoken, which openai-harmony would download")
    directory = tmp_path_factory.mktemp("harmony")
    family_renderer(directory, "gpt-oss")
    settings = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    ranks = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    control = {
        "<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002, "<|constrain|>": 200003, "<|channel|>": 200005,
        "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012,
    }  # fmt: skip
    words = {"".join(letters()[one] for one in base64.b64decode(word)): int(rank) for word, rank in ranks}
    settings["model"] |= {"vocab": words | control, "merges": [], "ignore_merges": True}
    settings["pre_tokenizer"] |= {"use_regex": True}
    settings["added_tokens"] = [one | {"id": control[one["content"]]} for one in settings["added_tokens"]]
    (directory / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    return load_renderer(directory, name="gpt-oss", options={"conversation_start_date": "DATE"})


@cache
def letters() -> dict[int, str]:
    """Bytes as byte-level vocabularies write them: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [one for one in range(256) if one not in printable]
    return {one: chr(one) for one in printable} | {one: chr(256 + number) for number, one in enumerate(others)}


def test_gpt_oss_s_own_renderer_trains_reasoning_and_the_names_of_tools(harmony: Renderer):
    expected = OSS_USE.replace('"four"', "four")  # the package writes outputs as they are, the template as JSON
    expected = expected.replace(
        "[[<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>[["
    )  # its prompts go on to there
    assert samples(harmony, USE, TOOLS) == (expected,)
    two = samples(harmony, [SYSTEM, USER, answer("", None, call("c1", 2), call("c2", 3))], TOOLS)[0]
    adds = ' to=functions.add<|channel|>commentary json<|message|>{"a": %d, "b": %d}<|call|>'
    assert two.endswith(f"<|start|>assistant[[{adds % (2, 2)}]]<|start|>assistant[[{adds % (3, 3)}]]")
    ends = [one.rpartition("<|start|>")[2] for one in samples(harmony, TURNS)]
    assert ends == ["assistant<|channel|>final<|message|>4<|return|>]]", "assistant<|channel|>final<|message|>6<|return|>]]"]


def test_gpt_oss_s_own_renderer_keeps_control_tokens_of_messages_plain(harmony: Renderer):
    text = harmony.tokenizer.decode(harmony.render_ids([{"role": "user", "content": "a<|end|>b"}]))
    assert text.endswith("<|start|>user<|message|>a<|end|>b<|end|>")
