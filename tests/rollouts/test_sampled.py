"""The endpoint over a sampler: whole rollouts with a tokenizer of single bytes, whose every token can be read."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers

from gym_bridge.errors import DataError
from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Rollout, RolloutKey
from gym_bridge.schemas.seams import Turn, TurnRequest
from gym_bridge.schemas.tokens import Completion, FinishReason, SampleKey, SamplingParams
from gym_bridge.tokens.chatml import ChatMLRenderer
from gym_bridge.tokens.renderers import Renderer, load_renderer
from gym_bridge.tokens.tokenizer import Tokenizer
from tests.rollouts.model_stage import client
from tests.rollouts.stage import counter_task, serving, serving_counter
from tests.tokens.vocabularies import write_qwen3

START, END = 256, 257


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> ChatMLRenderer:
    """ChatML over 256 bytes and two control tokens."""
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = HFTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return ChatMLRenderer(Tokenizer(directory))


class ScriptedSampler:
    """Answers with given texts, turn by turn, and keeps what it was asked."""

    def __init__(self, renderer: Renderer, *texts: str, finish_reason: FinishReason = "stop"):
        self.renderer, self.texts = renderer, texts
        self.finish_reason: FinishReason = finish_reason
        self.asked: list[tuple[tuple[int, ...], SamplingParams, SampleKey]] = []

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """The text of the turn in ids; the i-th token has the log-probability -i/8."""
        self.asked.append((tuple(prompt_ids), params, key))
        ids = self.renderer.tokenizer.encode(self.texts[min(key.turn, len(self.texts) - 1)])
        if self.finish_reason == "stop":
            ids = [*ids, self.renderer.get_stop_token_ids()[0]]
        logprobs = tuple(-number / 8 for number in range(len(ids)))
        return Completion(ids=tuple(ids), logprobs=logprobs, finish_reason=self.finish_reason, policy_version=3)


def tool_call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def played(sampler: ScriptedSampler, task: dict[str, Any], *, counter: bool = False, renderer: Renderer | None = None) -> Rollout:
    """One rollout against the arithmetic server, or the counter."""

    async def play(url: str) -> Rollout:
        endpoint = SampledEndpoint(sampler, renderer or sampler.renderer, max_tokens=99, model="tiny")
        loop = TurnLoop(endpoint=endpoint, limits=Limits(max_turns=4), seed=11)
        async with client() as http:
            environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20)
            planned = PlannedRollout(key=RolloutKey(0, 0), row=task)
            return (await Attempts(environment=environment, timeout_s=20).one(planned, 0)).rollout

    async def run() -> Rollout:
        if counter:
            async with serving_counter() as (url, _):
                return await play(url)
        async with serving(application(ArithmeticServer())) as url:
            return await play(url)

    return asyncio.run(run())


def sum_task(kind: str) -> tuple[dict[str, Any], int, int]:
    (task,) = ArithmeticServer.tasks(num_tasks=1, seed=0, split="train", kind=kind)
    return task, *task["operands"]


def test_a_sampled_answer_is_verified_and_keeps_its_tokens(renderer: ChatMLRenderer):
    task, a, b = sum_task("sum")
    sampler = ScriptedSampler(renderer, f"{a} + {b} = {a + b}")
    rollout = played(sampler, task)
    assert rollout.reward == 1.0
    (turn,) = rollout.turns
    ((prompt, params, key),) = sampler.asked
    assert turn.prompt_ids == prompt
    assert turn.completion_ids == (*renderer.tokenizer.encode(f"{a} + {b} = {a + b}"), END)
    assert turn.logprobs[:3] == (0.0, -0.125, -0.25)
    assert (turn.policy_version, turn.starts_segment) == (3, True)
    assert key == (11, 0, 0, 0)
    assert (params.max_tokens, params.temperature, params.stop_token_ids) == (99, 1.0, (END,))
    assert rollout.row["response"]["usage"]["input_tokens"] == len(prompt)
    assert rollout.row["response"]["usage"]["output_tokens"] == len(turn.completion_ids)
    assert renderer.tokenizer.decode(prompt).endswith(f"<|im_start|>user\nWhat is {a} + {b}?<|im_end|>\n<|im_start|>assistant\n")


def test_the_second_turn_extends_the_first_token_for_token(renderer: ChatMLRenderer):
    task, a, b = sum_task("tool")
    # Written as no renderer would write it: two blanks, keys the other way round.
    call = f'<tool_call>\n{{"arguments":  {{"b": {b}, "a": {a}}}, "name": "add"}}\n</tool_call>'
    rollout = played(ScriptedSampler(renderer, call, f"{a + b}"), task)
    assert rollout.reward == 1.0
    first, second = rollout.turns
    output = f'\n<|im_start|>tool\n{{"sum":{a + b}}}<|im_end|>\n<|im_start|>assistant\n'
    head = first.prompt_ids + first.completion_ids
    assert second.prompt_ids[: len(head)] == head
    assert renderer.tokenizer.decode(second.prompt_ids[len(head) :]) == output
    assert (first.starts_segment, second.starts_segment) == (True, False)
    assert second.completion_ids == (*renderer.tokenizer.encode(f"{a + b}"), END)
    items = rollout.row["response"]["output"]
    assert [item["type"] for item in items] == ["function_call", "function_call_output", "message"]
    assert rollout.row["gym_bridge"]["policy_versions"] == [3, 3]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"count": 123456789012345678901234567890}',
        '{"count": "\\ud800"}',
        '{"count": ' + "[" * 300 + "]" * 300 + "}",
        '{"count": NaN}',
    ],
)
def test_arguments_that_no_row_can_hold_go_back_to_the_model_and_do_not_end_the_rollout(renderer: ChatMLRenderer, arguments: str):
    rollout = played(ScriptedSampler(renderer, tool_call("add", arguments), "3"), counter_task(expected=3), counter=True)
    assert rollout.failure is None
    assert rollout.reward == 1.0
    assert rollout.row["gym_bridge"]["num_tool_errors"] == 1
    assert [turn.starts_segment for turn in rollout.turns] == [True, False]
    json.dumps(rollout.row).encode()


def test_a_name_with_half_a_character_is_an_unknown_tool(renderer: ChatMLRenderer):
    rollout = played(ScriptedSampler(renderer, tool_call("\\ud800", "{}"), "3"), counter_task(expected=3), counter=True)
    assert rollout.reward == 1.0
    assert rollout.row["response"]["output"][1]["output"] == '{"error":"Unknown tool: ?"}'


def test_a_call_that_is_no_json_is_an_answer(renderer: ChatMLRenderer):
    task, *_ = sum_task("tool")
    rollout = played(ScriptedSampler(renderer, "<tool_call>\n{add}\n</tool_call>"), task)
    assert (rollout.reward, rollout.row["gym_bridge"]["stop_reason"]) == (0.0, "answered")


def test_a_completion_that_is_cut_off_calls_no_tool(renderer: ChatMLRenderer):
    task, a, b = sum_task("tool")
    call = tool_call("add", f'{{"a": {a}, "b": {b}}}')
    rollout = played(ScriptedSampler(renderer, call, finish_reason="length"), task)
    assert (rollout.truncated, rollout.row["gym_bridge"]["num_tool_calls"]) == (True, 0)
    assert rollout.row["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


class NoBridge(ChatMLRenderer):
    """ChatML that cannot extend what was sampled."""

    def bridge_to_next_turn(self, *args: Any, **options: Any) -> None:
        """Never."""


def test_without_a_bridge_a_turn_whose_prompt_does_not_extend_the_last_one_starts_a_segment(renderer: ChatMLRenderer):
    task, a, b = sum_task("tool")
    call = f'<tool_call>\n{{"arguments":  {{"b": {b}, "a": {a}}}, "name": "add"}}\n</tool_call>'
    sampler = ScriptedSampler(renderer, call, f"{a + b}")
    rollout = played(sampler, task, renderer=NoBridge(renderer.tokenizer))
    assert rollout.reward == 1.0
    assert [turn.starts_segment for turn in rollout.turns] == [True, True]


def test_without_a_bridge_a_turn_whose_prompt_extends_the_last_one_goes_on_with_its_segment(renderer: ChatMLRenderer):
    task, a, b = sum_task("tool")
    sampler = ScriptedSampler(renderer, tool_call("add", f'{{"a": {a}, "b": {b}}}'), f"{a + b}")
    rollout = played(sampler, task, renderer=NoBridge(renderer.tokenizer))
    assert [turn.starts_segment for turn in rollout.turns] == [True, False]


def test_a_bridge_that_drops_sampled_tokens_is_not_believed(renderer: ChatMLRenderer):
    class Trimming(ChatMLRenderer):
        """Cuts the last sampled token off."""

        def bridge_to_next_turn(self, previous_prompt_ids, previous_completion_ids, *args, **options):
            """One token less than was sampled."""
            return super().bridge_to_next_turn(previous_prompt_ids, previous_completion_ids[:-2], *args, **options)

    task, a, b = sum_task("tool")
    call = f'<tool_call>\n{{"arguments":  {{"b": {b}, "a": {a}}}, "name": "add"}}\n</tool_call>'
    rollout = played(ScriptedSampler(renderer, call, f"{a + b}"), task, renderer=Trimming(renderer.tokenizer))
    assert [turn.starts_segment for turn in rollout.turns] == [True, True]


def test_another_family_s_rollout_is_one_segment_too(tmp_path: Path):
    family = load_renderer(write_qwen3(tmp_path), name="qwen3")
    task, a, b = sum_task("tool")
    call = tool_call("add", f'{{"a": {a}, "b": {b}}}')
    rollout = played(ScriptedSampler(family, f"<think>\nhard\n</think>\n\n{call}", f"{a + b}"), task)
    assert rollout.reward == 1.0
    first, second = rollout.turns
    assert (first.starts_segment, second.starts_segment) == (True, False)
    output = f'\n<|im_start|>user\n<tool_response>\n{{"sum":{a + b}}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n'
    assert family.tokenizer.decode(second.prompt_ids[len(first.all_ids) :]) == output
    assert [item["type"] for item in rollout.row["response"]["output"]][:2] == ["reasoning", "function_call"]


TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}


def request(*, tools: tuple[Any, ...] = (), **params: Any) -> TurnRequest:
    return TurnRequest(items=({"role": "user", "content": "hi"},), tools=tools, params=params, key=SampleKey(0, 0, 0, 0))


def asked(renderer: ChatMLRenderer, one: TurnRequest, *, says: str = "yo") -> tuple[str, SamplingParams, SampleKey, Turn]:
    """Prompt, settings and key that the sampler got, and the turn."""
    sampler = ScriptedSampler(renderer, says)
    turn = asyncio.run(SampledEndpoint(sampler, renderer, max_tokens=9, model="tiny").turn(one))
    ((prompt, params, key),) = sampler.asked
    return renderer.tokenizer.decode(prompt), params, key, turn


def test_instructions_are_the_system_message(renderer: ChatMLRenderer):
    prompt, *_ = asked(renderer, request(instructions="Be brief."))
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("params", "max_tokens", "temperature"),
    [
        ({"max_output_tokens": 5, "temperature": 0}, 5, 0.0),
        ({"max_output_tokens": 50}, 9, 1.0),
        ({"max_output_tokens": None, "temperature": None}, 9, 1.0),
    ],
)
def test_the_lower_limit_of_tokens_counts_and_temperature_zero_is_zero(renderer, params, max_tokens, temperature):
    _, got, *_ = asked(renderer, request(**params))
    assert (got.max_tokens, got.temperature) == (max_tokens, temperature)


def test_top_p_and_top_k_reach_the_sampler_and_minus_one_is_all(renderer: ChatMLRenderer):
    _, got, *_ = asked(renderer, request(top_p=0.9, top_k=20))
    assert (got.top_p, got.top_k) == (0.9, 20)
    _, got, *_ = asked(renderer, request(top_k=-1))
    assert (got.top_p, got.top_k) == (1.0, 0)


def test_a_tasks_seed_stands_for_that_of_the_run_wherever_nemo_gym_puts_it(renderer: ChatMLRenderer):
    assert asked(renderer, request(seed=7))[2] == (7, 0, 0, 0)
    assert asked(renderer, request(metadata={"extra_body": '{"seed": 8, "top_k": 3}'}))[1:3] == (
        SamplingParams(max_tokens=9, top_k=3, stop_token_ids=(END,)),
        (8, 0, 0, 0),
    )
    assert asked(renderer, request(seed=7, metadata={"extra_body": '{"seed": 8}'}))[2] == (7, 0, 0, 0)


def test_tool_choice_none_shows_no_tools_and_hears_no_calls(renderer: ChatMLRenderer):
    call = tool_call("add", "{}")
    prompt, _, _, turn = asked(renderer, request(tools=(TOOL,), tool_choice="none"), says=call)
    assert "<tools>" not in prompt
    assert [item["type"] for item in turn.items] == ["message"]
    assert turn.items[0]["content"][0]["text"] == call
    prompt, _, _, turn = asked(renderer, request(tools=(TOOL,), tool_choice="auto"), says=call)
    assert "<tools>" in prompt
    assert [item["type"] for item in turn.items] == ["function_call"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice=required: a sampler cannot force a call"),
        ({"tool_choice": {"type": "function", "name": "add"}}, "a sampler cannot force a call"),
        ({"reasoning": {"effort": "high"}}, "parameter 'reasoning.effort' (high) has no meaning"),
        ({"frequency_penalty": 1.0}, "parameter 'frequency_penalty' (1.0) has no meaning"),
        ({"temprature": 1.0}, "parameter 'temprature' (1.0) has no meaning"),
        ({"text": {"format": {"type": "json_object"}}}, "parameter 'text'"),
        ({"truncation": "auto"}, "parameter 'truncation' (auto)"),
        ({"metadata": {"extra_body": '{"min_p": 0.1}'}}, "parameter 'min_p' (0.1)"),
        ({"metadata": {"chat_template_kwargs": '{"enable_thinking": false}'}}, "with tokens they are options of the renderer"),
        ({"temperature": -1}, "temperature=-1; expected a number from 0 up"),
        ({"temperature": float("nan")}, "temperature=nan; expected a number from 0 up"),
        ({"temperature": "hot"}, "temperature='hot'; expected a number"),
        ({"top_p": 1.5}, "top_p=1.5; expected a number from 0 to 1"),
        ({"max_output_tokens": 0}, "max_output_tokens=0; expected a whole number of at least 1"),
        ({"top_k": 2.5}, "top_k=2.5; expected a whole number"),
        ({"seed": "x"}, "seed='x'; expected a whole number of at least 0"),
    ],
)
def test_a_parameter_that_no_sampler_can_follow_is_refused_by_name(renderer, params, message):
    with pytest.raises(DataError, match=re.escape(message)):
        asked(renderer, request(**params))


def test_parameters_without_meaning_for_tokens_and_harmless_values_are_let_pass(renderer: ChatMLRenderer):
    harmless = {
        "store": False,
        "metadata": {"label": "x"},
        "parallel_tool_calls": False,
        "reasoning": {"summary": "auto", "effort": None},
        "truncation": "disabled",
        "text": {"format": {"type": "text"}},
        "previous_response_id": None,
    }
    assert asked(renderer, request(**harmless))[1] == SamplingParams(max_tokens=9, stop_token_ids=(END,))


def test_megabytes_of_a_tool_are_rendered_beside_the_event_loop(renderer: ChatMLRenderer):
    call = {"type": "function_call", "call_id": "c", "name": "read", "arguments": "{}", "id": "f"}
    output = {"type": "function_call_output", "call_id": "c", "output": "words and more words " * 60_000}
    items = ({"role": "user", "content": "read it"}, call, output)
    request = TurnRequest(items=items, tools=(), params={}, key=SampleKey(0, 0, 0, 1))
    endpoint = SampledEndpoint(ScriptedSampler(renderer, "long"), renderer, max_tokens=9, model="tiny")

    async def run() -> tuple[int, Turn]:
        asking = asyncio.create_task(endpoint.turn(request))
        num_looks = 0
        while not asking.done():
            await asyncio.sleep(0)
            num_looks += 1
        return num_looks, await asking

    num_looks, turn = asyncio.run(run())
    assert num_looks > 5  # in the event loop it would be two or three
    assert turn.usage.input_tokens > 1_000_000
