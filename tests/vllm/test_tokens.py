"""The token wire of a real vLLM: ids are the engine's, log-probs the model's."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gym_bridge.errors import ContextOverflowError
from gym_bridge.rollouts.models.vllm_sampler import VLLMSampler
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams, TurnTokens
from gym_bridge.tokens.trajectory import build_trajectory
from tests.vllm.playing import CONTEXT_LENGTH, MODEL, ServedModel, connected, play, tasks

pytestmark = pytest.mark.vllm
PROMPT = (1, 4093, 198, 1780, 314, 216, 34, 27, 34, 47, 2, 198, 1, 520, 9531, 198)
"""`What is 2+2?` as ChatML."""
END = 2
CUT = SamplingParams(max_tokens=12, temperature=1.5, top_p=0.9, top_k=50, stop_token_ids=(END,))


def sampled(served: ServedModel, *asked: tuple[tuple[int, ...], SamplingParams, int]) -> list[Any]:
    """The completion, or the overflow, of each (prompt, params, rollout index), one after the other."""

    async def run() -> list[Completion | ContextOverflowError]:
        found: list[Completion | ContextOverflowError] = []
        async with connected(served) as http:
            sampler = VLLMSampler(http, MODEL)
            for prompt, params, rollout_index in asked:
                try:
                    found.append(await sampler.sample(prompt, params, key=SampleKey(0, 0, rollout_index, 0)))
                except ContextOverflowError as error:
                    found.append(error)
        return found

    return asyncio.run(run())


Played = list[tuple[list[TurnTokens], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def tool_rollouts(served: ServedModel) -> Played:
    """Turns of rollouts with a tool, and the engine's replies to each."""
    rollouts, replies = play("tokens", served, tasks("tool", num_tasks=4, temperature=0.3))
    assert [one.failure for one in rollouts] == [None] * 4
    return [(list(one.turns), kept) for one, kept in zip(rollouts, replies, strict=True)]


def test_the_concatenated_turns_are_the_engine_s_own_prompts(tool_rollouts: Played):
    longest = 0
    for turns, replies in tool_rollouts:
        engine = [reply["choices"][0] for reply in replies][-len(turns) :]
        before: list[int] = []
        for number, (turn, choice) in enumerate(zip(turns, engine, strict=True)):
            assert list(turn.prompt_ids) == choice["prompt_token_ids"]
            assert choice["prompt_token_ids"][: len(before)] == before
            assert turn.starts_segment == (number == 0)
            before = choice["prompt_token_ids"] + choice["token_ids"]
        (segment,) = build_trajectory(RolloutKey(0, 0), turns).segments
        assert segment.token_ids.tolist() == before
        longest = max(longest, len(turns))
    assert longest >= 2


def test_a_completion_that_the_model_ended_holds_its_stop_token(tool_rollouts: Played):
    ended = [turn for turns, replies in tool_rollouts for turn in turns if replies[-1]["choices"][0]["finish_reason"] == "stop"]
    assert ended
    assert all(turn.completion_ids[-1] == END and turn.completion_ids.count(END) == 1 for turn in ended)


@pytest.fixture(scope="module")
def reference(model_directory: Path) -> Callable[[tuple[int, ...], tuple[int, ...]], np.ndarray]:
    """Log-probs of a completion after a prompt, as transformers computes them in float32 at temperature 1."""
    import torch

    from gym_bridge.policy.loading import load_module

    torch.set_num_threads(2)
    module = load_module(model_directory, device=torch.device("cpu"), dtype=torch.float32)

    def logprobs(prompt: tuple[int, ...], completion: tuple[int, ...]) -> np.ndarray:
        with torch.inference_mode():
            logits = module(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.float(), dim=-1)[range(len(completion)), list(completion)].numpy()

    return logprobs


def test_logprobs_are_the_model_s_own_whatever_it_is_sampled_with(served: ServedModel, tool_rollouts: Played, reference: Any):
    (cut,) = sampled(served, (PROMPT, CUT, 0))
    turns = [turn for rollout, _ in tool_rollouts for turn in rollout][:3]
    for prompt, ids, logprobs in [
        (PROMPT, cut.ids, cut.logprobs),
        *((turn.prompt_ids, turn.completion_ids, turn.logprobs) for turn in turns),
    ]:
        assert np.abs(reference(prompt, ids) - np.array(logprobs)).max() < 1e-3


def test_equal_keys_draw_equal_tokens_and_others_do_not(served: ServedModel):
    params = SamplingParams(max_tokens=12, temperature=1.0, stop_token_ids=(END,))
    first, again, *others = sampled(served, *((PROMPT, params, one) for one in (0, 0, 1, 2, 3)))
    assert first == again
    assert {one.ids for one in others} != {first.ids}


def test_a_token_of_ours_stops_a_completion_and_stays_in_it(served: ServedModel):
    greedy = SamplingParams(max_tokens=12, temperature=0.0, stop_token_ids=(END,))
    (whole,) = sampled(served, (PROMPT, greedy, 0))
    third = whole.ids[2]
    assert third not in whole.ids[:2]
    (cut,) = sampled(served, (PROMPT, SamplingParams(max_tokens=12, temperature=0.0, stop_token_ids=(third, END)), 0))
    assert (cut.ids, cut.finish_reason) == (whole.ids[:3], "stop")
    assert cut.logprobs == pytest.approx(whole.logprobs[:3], abs=1e-4)


def test_the_context_is_used_to_its_last_token_and_no_further(served: ServedModel):
    endless = SamplingParams(max_tokens=5 * CONTEXT_LENGTH, temperature=0.0)
    full, over = (5,) * CONTEXT_LENGTH, (5,) * (CONTEXT_LENGTH + 1)
    almost, *refused = sampled(served, (full[:-2], endless, 0), (full, endless, 0), (over, endless, 0))
    assert (len(almost.ids), almost.finish_reason) == (2, "length")
    assert [str(one) for one in refused] == [
        "a prompt of 2048 tokens fills the model's context of 2048",
        "a prompt of 2049 tokens fills the model's context of 2048",
    ]
