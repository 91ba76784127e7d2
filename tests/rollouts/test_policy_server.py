"""The policy as an OpenAI endpoint: the real `openai` client, a real renderer of single bytes, and a sampler with a script."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from gym_bridge.errors import ConfigError, ContextOverflowError, PolicyError
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.rollouts.policy_server.calls import CallRecord, PolicyServer
from gym_bridge.rollouts.policy_server.serving import served_policy
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams, TurnTokens
from gym_bridge.tokens.chatml import ChatMLRenderer
from gym_bridge.tokens.trajectory import build_trajectory
from tests.rollouts.test_sampled import ScriptedSampler, renderer, tool_call  # noqa: F401

Tokens = tuple[list[int], list[int], list[float]]
FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")
ADD = {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
FLAT = [{"type": "function", **ADD, "strict": False}]
NESTED = [{"type": "function", "function": ADD}]
USER = {"role": "user", "content": "count"}


class Broken:
    """A sampler that always fails in the same way."""

    def __init__(self, error: Exception):
        self.error = error

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """No completion."""
        raise self.error


@contextmanager
def serving(sampler: Any, renderer: ChatMLRenderer, **options: Any) -> Iterator[PolicyServer]:  # noqa: F811
    endpoint = SampledEndpoint(sampler, renderer, max_tokens=50, model="tiny")
    with served_policy(endpoint, seed=11, **options) as policy:
        yield policy


CLIENTS: list[Any] = []


@pytest.fixture(autouse=True)
def _closed_clients() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def client(policy: PolicyServer, path: str = "/v1", key: str = "none") -> Any:
    """The real client; its types know neither of our fields nor of plain dicts."""
    http = openai.DefaultHttpxClient(trust_env=False)
    CLIENTS.append(openai.OpenAI(base_url=f"{policy.url}{path}", api_key=key, max_retries=0, http_client=http))
    return CLIENTS[-1]


def fields(value: Any) -> Tokens:
    return tuple(getattr(value, name) for name in FIELDS)  # pyright: ignore[reportReturnType]


def test_responses_extend_the_sampled_tokens_that_the_history_brings_back(renderer: ChatMLRenderer):  # noqa: F811
    # Written as no renderer would write it: two blanks, keys the other way round.
    written = '<tool_call>\n{"arguments":  {"a": 1}, "name": "add"}\n</tool_call>'
    with serving(ScriptedSampler(renderer, written, "done"), renderer) as policy:
        api = client(policy)
        first = api.responses.create(model="any", input=[USER], tools=FLAT)
        (call,) = first.output
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"a": 1})
        prompt, completion, logprobs = fields(call)
        assert renderer.tokenizer.decode(prompt).endswith("<|im_start|>user\ncount<|im_end|>\n<|im_start|>assistant\n")
        assert renderer.tokenizer.decode(completion) == written + "<|im_end|>"
        assert logprobs[:3] == [0.0, -0.125, -0.25]
        assert (first.usage.input_tokens, first.usage.output_tokens) == (len(prompt), len(completion))
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
        second = api.responses.create(model="any", input=[USER, call.model_dump(), output], tools=FLAT)
        (message,) = second.output
        assert message.content[0].text == "done"
        again, _, _ = fields(message)
        assert again[: len(prompt + completion)] == prompt + completion
        tail = renderer.tokenizer.decode(again[len(prompt + completion) :])
        assert tail == "\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n"
        assert (first.status, second.status, second.incomplete_details) == ("completed", "completed", None)


def test_chat_extends_the_sampled_tokens_that_the_history_brings_back(renderer: ChatMLRenderer):  # noqa: F811
    written = '<tool_call>\n{"arguments":  {"a": 1}, "name": "add"}\n</tool_call>'
    with serving(ScriptedSampler(renderer, written, "done"), renderer) as policy:
        api = client(policy)
        first = api.chat.completions.create(model="any", messages=[USER], tools=NESTED, max_tokens=40)
        (choice,) = first.choices
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "add")
        prompt, completion, _ = fields(choice.message)
        assert (first.prompt_token_ids, choice.token_ids) == (prompt, completion)
        heard = {"role": "tool", "tool_call_id": call.id, "content": "2"}
        history = [USER, choice.message.model_dump(), heard]
        second = api.chat.completions.create(model="any", messages=history, tools=NESTED, logprobs=True, top_logprobs=0)
        assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("done", "stop")
        again, sampled, logprobs = fields(second.choices[0].message)
        assert again[: len(prompt + completion)] == prompt + completion
        told = second.choices[0].logprobs.content
        assert [one.token for one in told] == [f"token_id:{token}" for token in sampled]
        assert [one.logprob for one in told] == logprobs


@pytest.mark.parametrize("rewritten", ["the task", "the answer", "the tools"])
def test_a_history_that_was_rewritten_starts_a_new_segment(renderer: ChatMLRenderer, rewritten: str):  # noqa: F811
    with serving(ScriptedSampler(renderer, "one  ", "two"), renderer) as policy:
        api = client(policy)
        said = api.responses.create(model="any", input=[USER]).output[0].model_dump()
        prompt, completion, _ = (said[name] for name in FIELDS)
        task = {**USER, "content": "count on"} if rewritten == "the task" else USER
        if rewritten == "the answer":
            said = {**said, "content": [{**said["content"][0], "text": "1"}]}
        tools = FLAT if rewritten == "the tools" else []
        more = {"role": "user", "content": "more"}
        again, _, _ = fields(api.responses.create(model="any", input=[task, said, more], tools=tools).output[0])
        assert again[: len(prompt + completion)] != prompt + completion
        assert again[: len(prompt)] != prompt or rewritten == "the answer"


def test_tokens_that_were_not_sampled_here_are_not_extended(renderer: ChatMLRenderer):  # noqa: F811
    with serving(ScriptedSampler(renderer, "one"), renderer) as policy:
        foreign = {"prompt_token_ids": [1, 2], "generation_token_ids": [3], "generation_log_probs": [-1.0]}
        said = {"type": "message", "role": "assistant", "content": "one", **foreign}
        body = {"model": "any", "input": [USER, said, {"role": "user", "content": "more"}]}
        reply = httpx.post(f"{policy.base_url}/responses", json=body, trust_env=False).json()
        assert reply["output"][0]["prompt_token_ids"][:3] != [1, 2, 3]


def test_a_capture_extends_the_tokens_of_a_client_that_drops_them(renderer: ChatMLRenderer):  # noqa: F811
    texts = (tool_call("add", '{"a":  1}'), "done ", "over")
    with serving(ScriptedSampler(renderer, *texts), renderer) as policy:
        api = client(policy, "/ng-rollout/4-2/training-token-capture/v1")
        first = api.chat.completions.create(model="any", messages=[USER], tools=NESTED).choices[0].message
        (call,) = first.tool_calls
        plain = {"id": call.id, "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
        history = [USER, {"role": "assistant", "content": None, "tool_calls": [plain]}]
        history += [{"role": "tool", "tool_call_id": call.id, "content": "2"}]
        api.chat.completions.create(model="any", messages=history, tools=NESTED)
        history += [{"role": "assistant", "content": "done"}, {"role": "user", "content": "more"}]
        api.chat.completions.create(model="any", messages=history, tools=NESTED)
        told = httpx.get(f"{policy.url}/ng-rollout/4-2/capture", trust_env=False).json()
        turns = policy.calls.turns("4-2")
        assert [turn.starts_segment for turn in turns] == [True, False, False]
        assert [turn.policy_version for turn in turns] == [3, 3, 3]
        (segment,) = build_trajectory(RolloutKey(4, 2), turns).segments
        sampled = renderer.tokenizer.decode(segment.token_ids[segment.completion_mask].tolist())
        assert sampled == "<|im_end|>".join([*texts, ""])
        assert [one["generation_token_ids"] for one in told["turns"]] == [list(turn.completion_ids) for turn in turns]
        httpx.delete(f"{policy.url}/ng-rollout/4-2/capture", trust_env=False)
        assert policy.calls.turns("4-2") == ()


def test_a_conversation_that_branches_trains_every_completion_once(renderer: ChatMLRenderer):  # noqa: F811
    with serving(ScriptedSampler(renderer, "root", "left", "right", "leaf"), renderer) as policy:
        api = client(policy, "/ng-rollout/7-0/v1")

        def ask(*words: str) -> None:
            history = [{"role": ("user", "assistant")[number % 2], "content": word} for number, word in enumerate(words)]
            api.chat.completions.create(model="any", messages=history)

        ask("go")
        ask("go", "root", "l")
        ask("go", "root", "r")
        ask("go", "root", "l", "left", "on")
        turns = policy.calls.turns("7-0")
        said = [renderer.tokenizer.decode(turn.completion_ids).removesuffix("<|im_end|>") for turn in turns]
        assert list(zip(said, [turn.starts_segment for turn in turns], strict=True)) == [
            ("root", True), ("left", False), ("leaf", False), ("right", True),
        ]  # fmt: skip
        segments = build_trajectory(RolloutKey(7, 0), turns).segments
        assert sum(segment.completion_mask.sum() for segment in segments) == sum(len(turn.completion_ids) for turn in turns)


def test_a_call_draws_from_its_rollout_and_turn_and_others_from_their_number(renderer: ChatMLRenderer):  # noqa: F811
    sampler = ScriptedSampler(renderer, "a")
    with serving(sampler, renderer) as policy:
        api = client(policy)
        for metadata in ({"gym_bridge_rollout": "4-2-a1-3f"}, {"gym_bridge_rollout": "4-2-a1-3f", "k": "v"}, None, None):
            api.responses.create(model="any", input="go", metadata=metadata)
        api.responses.create(model="any", input="go", metadata={"gym_bridge_rollout": "9-1", "extra_body": '{"seed": 5}'})
    keys = [tuple(key) for _, _, key in sampler.asked]
    assert keys == [(11, 4, 2, 0), (11, 4, 2, 1), (11, -1, -1, 0), (11, -1, -1, 1), (5, 9, 1, 0)]


def test_many_rollouts_at_once_keep_their_own_tokens(renderer: ChatMLRenderer):  # noqa: F811
    with serving(ScriptedSampler(renderer, "one", "two"), renderer) as policy:

        def rollout(number: int) -> tuple[TurnTokens, ...]:
            api = client(policy, f"/ng-rollout/0-{number}/v1")
            task = {"role": "user", "content": f"task {number}"}
            said = api.responses.create(model="any", input=[task]).output[0].content[0].text
            answer, more = {"role": "assistant", "content": said}, {"role": "user", "content": "more"}
            api.responses.create(model="any", input=[task, answer, more])
            return policy.calls.turns(f"0-{number}")

        with ThreadPoolExecutor(16) as pool:
            played = list(pool.map(rollout, range(32)))
        for number, turns in enumerate(played):
            assert [turn.starts_segment for turn in turns] == [True, False]
            assert f"task {number}<" in renderer.tokenizer.decode(turns[0].prompt_ids)
        assert policy.calls.num_calls == 64


@pytest.mark.parametrize(
    ("route", "body", "told"),
    [
        ("responses", {}, "input is missing"),
        ("responses", {"input": 3}, "input is 3"),
        ("responses", {"input": "x", "stream": True}, "leave stream out"),
        ("responses", {"input": "x", "top_k": "many"}, "top_k='many'"),
        ("responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, "web_search"),
        ("responses", {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "answers no tool call"),
        ("responses", {"input": "x", "metadata": {"gym_bridge_rollout": 3}}, "expected a string"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_image"),
        ("chat/completions", {"messages": []}, "messages is missing"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role"),
        ("chat/completions", {"messages": [USER], "n": 2}, "'n'"),
        ("chat/completions", {"messages": [USER], "top_logprobs": 5}, "top_logprobs=5"),
        ("chat/completions", {"messages": [USER], "stop": ["x"]}, "'stop'"),
        ("chat/completions", {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "tool_calls.function"),
        ("chat/completions", [1], "expected an object"),
    ],
)
def test_a_request_that_cannot_be_followed_is_refused_in_openais_form(shared: PolicyServer, route: str, body: Any, told: str):
    reply = httpx.post(f"{shared.base_url}/{route}", json=body, trust_env=False)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert told in error["message"]


@pytest.fixture(scope="module")
def shared(renderer: ChatMLRenderer) -> Iterator[PolicyServer]:  # noqa: F811
    with serving(ScriptedSampler(renderer, "a"), renderer) as policy:
        yield policy


def test_harmless_parameters_of_chat_are_taken_and_lengths_are_followed(renderer: ChatMLRenderer):  # noqa: F811
    sampler = ScriptedSampler(renderer, "a")
    with serving(sampler, renderer) as policy:
        body = {"messages": [USER], "n": 1, "stop": None, "presence_penalty": 0, "response_format": {"type": "text"}, "seed": 3}
        body |= {"max_completion_tokens": 7, "temperature": 0.5, "tool_choice": "auto", "parallel_tool_calls": False, "user": "me"}
        assert httpx.post(f"{policy.base_url}/chat/completions", json=body, trust_env=False).status_code == 200
    ((_, params, key),) = sampler.asked
    assert (params.max_tokens, params.temperature, key.seed) == (7, 0.5, 3)


def test_an_overflow_is_a_400_in_the_words_that_clients_know_and_ends_an_agents_rollout(renderer: ChatMLRenderer):  # noqa: F811
    with serving(Broken(ContextOverflowError("a prompt of 9 tokens fills the model's context of 8")), renderer) as policy:
        for ask in (
            lambda: client(policy).responses.create(model="any", input="x"),
            lambda: client(policy, "/ng-rollout/1-1/v1").chat.completions.create(model="any", messages=[USER]),
        ):
            with pytest.raises(openai.BadRequestError, match="maximum context length") as refused:
                ask()
            assert refused.value.code == "context_length_exceeded"
        ended = client(policy, "/ng-rollout/1-2/v1").responses.create(model="any", input="x")
        assert (ended.status, ended.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert ended.output[0].content[0].text == ""
        assert policy.calls.overflowed("1-1")
        assert policy.calls.overflowed("1-2")
        assert not policy.calls.overflowed("1-3")


def test_a_sampler_that_fails_is_a_500_that_says_why(renderer: ChatMLRenderer):  # noqa: F811
    with (
        serving(Broken(PolicyError("the sampler is closed")), renderer) as policy,
        pytest.raises(openai.InternalServerError, match="the sampler is closed"),
    ):
        client(policy).responses.create(model="any", input="x")


def test_an_answer_that_was_cut_off_says_so_on_both_wires(renderer: ChatMLRenderer):  # noqa: F811
    with serving(ScriptedSampler(renderer, "one", finish_reason="length"), renderer) as policy:
        cut = client(policy).responses.create(model="any", input="x")
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert client(policy).chat.completions.create(model="any", messages=[USER]).choices[0].finish_reason == "length"


def test_the_endpoint_tells_of_itself_and_lets_in_who_has_the_key(renderer: ChatMLRenderer):  # noqa: F811
    with serving(ScriptedSampler(renderer, "a"), renderer, model="mine", token="secret") as policy:
        assert [one.id for one in client(policy, key="secret").models.list()] == ["mine"]
        with pytest.raises(openai.AuthenticationError):
            client(policy, key="other").models.list()
        assert httpx.get(f"{policy.url}/health", trust_env=False).json() == {"status": "ok"}
        assert httpx.get(f"{policy.url}/nowhere", headers={"Authorization": "Bearer secret"}, trust_env=False).status_code == 404


def test_a_port_in_use_is_told_and_is_free_after_the_block(renderer: ChatMLRenderer):  # noqa: F811
    sampler = ScriptedSampler(renderer, "a")
    with serving(sampler, renderer) as policy:
        port = int(policy.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match="in use"), serving(sampler, renderer, port=port):
            pass
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{policy.url}/health", trust_env=False)


def test_a_client_that_goes_away_leaves_no_call_behind(renderer: ChatMLRenderer):  # noqa: F811
    asked, cancelled = threading.Event(), threading.Event()

    class Endless:
        async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
            asked.set()
            try:
                return await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()

    async def ask_and_leave(url: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            task = asyncio.create_task(http.post(url, json={"input": "x"}))
            await asyncio.to_thread(asked.wait, 10)
            task.cancel()

    with serving(Endless(), renderer) as policy:
        asyncio.run(ask_and_leave(f"{policy.url}/ng-rollout/0-0/v1/responses"))
        assert cancelled.wait(10)
        assert policy.calls.turns("0-0") == ()


def turn(*prompt: int, completion: Sequence[int] = (9,), version: int = 0) -> TurnTokens:
    logprobs = tuple(-0.5 for _ in completion)
    return TurnTokens(
        prompt_ids=prompt, completion_ids=tuple(completion), logprobs=logprobs, policy_version=version, starts_segment=True
    )


def test_calls_that_are_too_many_or_too_old_are_forgotten_and_a_rollout_that_lost_one_is_none():
    record = CallRecord(max_tokens=6)
    record.add(turn(1, 2), history=b"a", rollout="r", parent=None)
    parent = record.find([1, 2, 9])
    record.add(turn(1, 2, 9, 3), history=b"b", rollout="r", parent=parent)  # two new tokens
    assert [one.prompt_ids for one in record.turns("r")] == [(1, 2), (1, 2, 9, 3)]
    assert [one.starts_segment for one in record.turns("r")] == [True, False]
    record.add(turn(5, 6), history=b"c", rollout=None, parent=None)
    assert record.turns("r") == ()
    assert record.find([1, 2, 9]) is None
    assert record.find([1, 2, 9, 3, 9]) is not None
    old = CallRecord(keep_s=-1.0)
    old.add(turn(1), history=b"a", rollout="r", parent=None)
    assert (old.find([1, 9]), old.turns("r")) == (None, ())


def test_of_calls_with_equal_tokens_that_of_the_rollout_is_found():
    record = CallRecord()
    for version, rollout in ((1, "r"), (2, "s"), (3, None)):
        record.add(turn(1, version=version), history=b"a", rollout=rollout, parent=None)
    versions = [record.find([1, 9], rollout=name) for name in ("r", "s", None)]
    assert [call and call.policy_version for call in versions] == [1, 2, 3]
