"""The endpoint over a sampler: whole rollouts with a tokenizer of single bytes, whose every token can be read."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers

from gym_bridge.errors import PolicyError
from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer
from gym_bridge.resource_servers.http import application
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Group, Rollout
from gym_bridge.schemas.seams import TurnRequest
from gym_bridge.schemas.tokens import Completion, FinishReason, SampleKey, SamplingParams
from gym_bridge.tokens.chatml import ChatMLRenderer
from gym_bridge.tokens.tokenizer import Tokenizer
from tests.rollouts.stage import counter_task, serving, serving_counter

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

    def __init__(self, renderer: ChatMLRenderer, *texts: str, finish_reason: FinishReason = "stop"):
        self.renderer, self.texts = renderer, texts
        self.finish_reason: FinishReason = finish_reason
        self.asked: list[tuple[tuple[int, ...], SamplingParams, SampleKey]] = []

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """The text of the turn in ids; the i-th token has the log-probability -i/8."""
        self.asked.append((tuple(prompt_ids), params, key))
        ids = self.renderer.tokenizer.encode(self.texts[min(key.turn, len(self.texts) - 1)])
        if self.finish_reason == "stop":
            ids = [*ids, END]
        logprobs = tuple(-number / 8 for number in range(len(ids)))
        return Completion(ids=tuple(ids), logprobs=logprobs, finish_reason=self.finish_reason, policy_version=3)


def tool_call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def played(sampler: ScriptedSampler, task: dict[str, Any], *, counter: bool = False) -> Rollout:
    """One rollout against the arithmetic server, or the counter."""

    async def play(url: str) -> Group:
        endpoint = SampledEndpoint(sampler, sampler.renderer, max_tokens=99, model="tiny")
        loop = TurnLoop(endpoint=endpoint, max_turns=4, seed=11, params={"temperature": 1.0})
        collector = RolloutCollector(loop, server_url=url, concurrency=2, max_attempts=1, rollout_timeout_s=20)
        (group,) = [one async for one in collector.groups([task], group_size=1)]
        return group

    async def run() -> Group:
        if counter:
            async with serving_counter() as (url, _):
                return await play(url)
        async with serving(application(ArithmeticServer())) as url:
            return await play(url)

    return asyncio.run(run()).rollouts[0]


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


def request(**params: Any) -> TurnRequest:
    return TurnRequest(items=({"role": "user", "content": "hi"},), tools=(), params=params, key=SampleKey(0, 0, 0, 0))


def test_instructions_are_the_system_message(renderer: ChatMLRenderer):
    sampler = ScriptedSampler(renderer, "yo")
    asyncio.run(SampledEndpoint(sampler, renderer, max_tokens=9, model="tiny").turn(request(instructions="Be brief.")))
    prompt = renderer.tokenizer.decode(sampler.asked[0][0])
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_lower_limit_of_tokens_counts_and_temperature_zero_is_zero(renderer: ChatMLRenderer):
    sampler = ScriptedSampler(renderer, "yo")
    endpoint = SampledEndpoint(sampler, renderer, max_tokens=9, model="tiny")
    for params in ({"max_output_tokens": 5, "temperature": 0}, {"max_output_tokens": 50}, {"max_output_tokens": None, "top_p": 1}):
        asyncio.run(endpoint.turn(request(**params)))
    assert [(one.max_tokens, one.temperature) for _, one, _ in sampler.asked] == [(5, 0.0), (9, 1.0), (9, 1.0)]


def test_a_setting_that_the_sampler_does_not_have_is_refused(renderer: ChatMLRenderer):
    with pytest.raises(PolicyError, match=r"top_p=0\.9"):
        asyncio.run(SampledEndpoint(ScriptedSampler(renderer, "x"), renderer, max_tokens=9, model="tiny").turn(request(top_p=0.9)))
