"""vLLM servers whose weights follow the trainer's: which completions are kept, under which version, and which never are."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from gym_bridge.errors import ContextOverflowError, ServerError
from gym_bridge.rollouts.models.loop_connections import LoopConnections
from gym_bridge.rollouts.models.model_http import EndpointError, ModelHttp
from gym_bridge.rollouts.models.replicas import home_of
from gym_bridge.rollouts.models.vllm_replicas import VLLMReplicas
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams
from tests.rollouts.model_stage import Answer, ModelServer, answer, model_server
from tests.rollouts.vllm_stage import KEY, PLAIN, PROMPT, SENT


def generated(*versions: str, logprobs: Sequence[float] = (-0.5, -0.25), reason: str = "stop", prompt: Any = PROMPT) -> Answer:
    """What vLLM's generate route replies: a span of tokens for each name of weights."""
    content = [{"token_id": token, "logprob": one} for token, one in zip((5, 2), logprobs, strict=True)]
    spans = [{"version": one, "start": number, "end": number + 1} for number, one in enumerate(versions)]
    choice = {"finish_reason": reason, "token_ids": [5, 2], "logprobs": {"content": content}, "weight_versions": spans or None}
    return answer({"prompt_token_ids": prompt, "choices": [choice]})


def refusal(status: int, message: str = "no") -> Answer:
    """An error of vLLM."""
    return answer({"error": {"message": message, "code": status}}, status=status)


@dataclass
class Pushed:
    """Weights of version 3 under the name ours:3; `restorable` servers take them again, at any time."""

    version: int = 3
    adapter: str | None = None
    restorable: bool = True
    stale: set[int] = field(default_factory=set)
    restored: list[int] = field(default_factory=list)
    wait: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        self.wait.set()

    def version_of(self, label: str) -> int | None:
        return int(label.removeprefix("ours:")) if label.startswith("ours:") else None

    def runs(self, replica: int) -> bool:
        return replica not in self.stale

    def lost(self, replica: int) -> None:
        self.stale.add(replica)

    def restore(self, replica: int) -> None:
        self.wait.wait(10)
        self.restored.append(replica)
        if not self.restorable:
            raise ServerError("it is gone", url="http://x")
        self.stale.discard(replica)


def sampled(
    pushed: Pushed, *servers: Sequence[Answer], keys: Sequence[SampleKey] = (KEY,), params: SamplingParams = PLAIN
) -> tuple[list[Completion | Exception], list[ModelServer]]:
    """The outcomes of the calls, one after the other, and the servers; each has its answers, in order."""

    async def run() -> tuple[list[Completion | Exception], list[ModelServer]]:
        connections = LoopConnections()
        started: list[ModelServer] = []
        stages = [model_server(*answers) for answers in servers]
        for stage in stages:
            started.append(await stage.__aenter__())
        https = [ModelHttp(one.url, client=connections, api_key=None, timeout_s=20, max_retries=0) for one in started]
        replicas = VLLMReplicas(lambda: dict(enumerate(https)), pushed)
        outcomes: list[Completion | Exception] = []
        for key in keys:
            try:
                outcomes.append(await replicas.sample(PROMPT, params, key=key))
            except (EndpointError, ContextOverflowError) as error:
                outcomes.append(error)
        await connections.close()
        for stage in stages:
            await stage.__aexit__(None, None, None)
        return outcomes, started

    return asyncio.run(run())


def kept(version: int) -> Completion:
    return Completion(ids=(5, 2), logprobs=(-0.5, -0.25), finish_reason="stop", policy_version=version)


def test_a_completion_has_the_version_that_the_server_reports():
    outcomes, (server,) = sampled(Pushed(), [generated("ours:4")])
    assert outcomes == [kept(4)]  # pushed while it was under way
    assert server.paths == ["/v1/inference/v1/generate"]


def test_all_that_decides_a_draw_is_sent():
    _, (server,) = sampled(Pushed(), [generated("ours:3")])
    assert server.bodies == [
        {
            "token_ids": [7, 8, 9],
            "return_token_ids": True,
            "sampling_params": {**SENT, "detokenize": False},
        }
    ]


def test_a_completion_of_several_versions_counts_as_the_oldest():
    outcomes, _ = sampled(Pushed(), [generated("ours:3", "ours:4")])
    assert outcomes == [kept(3)]


@pytest.mark.parametrize("names", [("default",), ("theirs:3",), ("ours:2",), ("ours:3", "default")])
def test_what_other_weights_sampled_is_thrown_away_and_sampled_again_once_they_are_restored(names: tuple[str, ...]):
    pushed = Pushed()
    outcomes, (server,) = sampled(pushed, [generated(*names), generated("ours:3")])
    assert (outcomes, pushed.restored, len(server.bodies)) == ([kept(3)], [0], 2)


def test_a_server_that_keeps_sampling_with_other_weights_is_an_error_and_counts_as_gone():
    pushed = Pushed()
    (error,), (server,) = sampled(pushed, [generated("default")])
    assert isinstance(error, EndpointError)
    assert "it runs other weights than were pushed to it: default" in str(error)
    assert (error.unreachable, error.transient, error.configuration, len(server.bodies)) == (True, True, False, 2)
    assert not pushed.runs(0)


def test_a_server_that_cannot_be_restored_is_not_asked():
    pushed = Pushed(stale={0}, restorable=False)
    (error,), (server,) = sampled(pushed, [generated("ours:3")])
    assert isinstance(error, EndpointError)
    assert (str(error).endswith("it is gone"), error.unreachable, server.bodies) == (True, True, [])


def test_a_server_that_does_not_say_which_weights_sampled_is_a_mistake_in_the_configuration():
    (error,), _ = sampled(Pushed(), [generated()])
    assert isinstance(error, EndpointError)
    assert (error.configuration, "vLLM does so since 0.32" in str(error)) == (True, True)


def test_an_adapter_is_named_and_a_server_that_lost_it_is_restored():
    pushed = Pushed(adapter="a")
    outcomes, (server,) = sampled(pushed, [refusal(404), generated("ours:3")])
    assert (outcomes, pushed.restored) == ([kept(3)], [0])
    assert [one["model"] for one in server.bodies] == ["a", "a"]
    (error,), _ = sampled(Pushed(), [refusal(404)])
    assert isinstance(error, EndpointError)
    assert error.configuration


def test_rollouts_keep_to_one_replica_and_go_to_the_other_where_theirs_fails():
    at_first = next(SampleKey(0, task, 0, 0) for task in range(9) if home_of(task, 0, 2) == 0)
    at_second = next(SampleKey(0, task, 0, 0) for task in range(9) if home_of(task, 0, 2) == 1)
    pushed = Pushed()
    outcomes, servers = sampled(pushed, [generated("ours:3")], [generated("ours:3")], keys=[at_first, at_first, at_second])
    assert (outcomes, [len(one.bodies) for one in servers]) == ([kept(3)] * 3, [2, 1])
    pushed = Pushed(stale={1}, restorable=False)
    outcomes, servers = sampled(pushed, [generated("ours:3")], [generated("ours:3")], keys=[at_first, at_second, at_second])
    assert (outcomes, [len(one.bodies) for one in servers]) == ([kept(3)] * 3, [3, 0])
    assert pushed.restored == [1]  # it rests


def test_a_completion_that_a_push_cut_off_is_asked_of_another_replica():
    outcomes, servers = sampled(Pushed(), *[[generated("ours:3", reason="abort"), generated("ours:3")] for _ in range(2)])
    (error,) = outcomes
    assert isinstance(error, EndpointError)
    assert (error.transient, "before its time" in str(error), [len(one.bodies) for one in servers]) == (True, True, [1, 1])


def test_a_prompt_beyond_the_context_is_an_overflow():
    message = "The decoder prompt (length 3) is longer than the maximum model length of 2."
    (error,), _ = sampled(Pushed(), [refusal(400, message)])
    assert isinstance(error, ContextOverflowError)


def test_whoever_waits_for_a_replica_waits_for_one_restoration():
    async def run() -> tuple[list[Completion], Pushed]:
        pushed = Pushed(stale={0})
        pushed.wait.clear()
        connections = LoopConnections()
        async with model_server(generated("ours:3")) as server:
            http = ModelHttp(server.url, client=connections, api_key=None, timeout_s=20, max_retries=0)
            replicas = VLLMReplicas(lambda: {0: http}, pushed)
            asked = [asyncio.create_task(replicas.sample(PROMPT, PLAIN, key=SampleKey(0, task, 0, 0))) for task in range(8)]
            await asyncio.sleep(0)
            asked.pop().cancel()
            pushed.wait.set()
            found = list(await asyncio.gather(*asked))
            await connections.close()
            return found, pushed

    found, pushed = asyncio.run(run())
    assert (found, pushed.restored) == ([kept(3)] * 7, [0])


def test_each_event_loop_has_connections_of_its_own_which_end_with_it():
    connections = LoopConnections()

    async def run() -> int:
        async with model_server(generated("ours:3")) as server:
            http = ModelHttp(server.url, client=connections, api_key=None, timeout_s=20)
            await VLLMReplicas(lambda: {0: http}, Pushed()).sample(PROMPT, PLAIN, key=KEY)
            return len(connections._pools)

    assert [asyncio.run(run()), asyncio.run(run())] == [1, 1]
    assert connections._pools == {}
