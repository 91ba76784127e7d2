"""Training samples from the policy's own distribution, or not at all."""

import asyncio
from contextlib import nullcontext

import pytest

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.whole_distribution import WholeDistribution, check_whole_distribution
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

KEY = SampleKey(0, 1, 2, 3)


class Echo:
    """Answers with the last token of the prompt."""

    async def sample(self, prompt_ids, params, *, key):
        return Completion(ids=(prompt_ids[-1],), logprobs=(-0.5,), finish_reason="stop", policy_version=key.turn)


def sampled(params, *, greedy_passes=False):
    sampler = WholeDistribution(Echo())
    with sampler.letting_greedy_pass() if greedy_passes else nullcontext():
        return asyncio.run(sampler.sample([7, 8], SamplingParams(max_tokens=4, **params), key=KEY))


def test_the_whole_distribution_passes_as_it_is():
    assert sampled({}) == Completion(ids=(8,), logprobs=(-0.5,), finish_reason="stop", policy_version=3)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"temperature": 0.7}, "temperature=0.7"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"top_k": 5}, "top_k=5"),
    ],
)
def test_what_cuts_the_distribution_is_refused(params, told):
    with pytest.raises(DataError, match=f"{told} draws from another distribution than the policy"):
        sampled(params)
    if params.get("temperature") != 0.0:
        with pytest.raises(DataError):
            sampled(params, greedy_passes=True)


def test_greedy_passes_where_held_out_tasks_are_played():
    assert sampled({"temperature": 0.0}, greedy_passes=True).ids == (8,)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.6},
        {"top_p": 0.95},
        {"metadata": {"extra_body": '{"top_k": 20}'}},
        {"metadata": {"extra_body": '{"min_p": 0.1}'}},
    ],
)
def test_a_tasks_parameters_are_checked_before_it_is_played(params):
    with pytest.raises(DataError):
        check_whole_distribution({"input": "hi", **params})


def test_a_task_that_says_nothing_or_the_neutral_values_passes():
    check_whole_distribution({"input": "hi"})
    check_whole_distribution({"input": "hi", "temperature": 1.0, "top_p": 1.0, "max_output_tokens": 9})
