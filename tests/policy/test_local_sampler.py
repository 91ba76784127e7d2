import asyncio
import threading
from contextlib import closing

import pytest
import torch

from gym_bridge.errors import ContextOverflowError, PolicyError
from gym_bridge.policy.loading import load_module
from gym_bridge.policy.samplers.local import LocalSampler
from gym_bridge.schemas.tokens import SampleKey, SamplingParams


@pytest.fixture(scope="module")
def module(tiny_llama):
    return load_module(tiny_llama, device=torch.device("cpu"))


def ask(sampler, prompts, *, max_tokens=6):
    """The outcome of each prompt: a completion or an error."""

    async def all_at_once():
        params = SamplingParams(max_tokens=max_tokens)
        asked = [sampler.sample(one, params, key=SampleKey(0, index, 0, 0)) for index, one in enumerate(prompts)]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), timeout=30)

    return asyncio.run(all_at_once())


def test_many_callers_get_their_own_completion(module):
    prompts = [(5, 8, index) for index in range(12)]
    with closing(LocalSampler(module)) as together, closing(LocalSampler(module, max_batch=1)) as one_by_one:
        found, expected = ask(together, prompts), ask(one_by_one, prompts)
    assert [one.ids for one in found] == [one.ids for one in expected]
    assert len({one.ids for one in found}) > 1


def test_a_completion_carries_the_version_that_was_pushed(module):
    with closing(LocalSampler(module)) as sampler:
        assert ask(sampler, [(5,)])[0].policy_version == 0
        sampler.push([], 7)
        assert ask(sampler, [(5,)])[0].policy_version == 7


def test_a_completion_ends_with_the_context_and_a_prompt_that_fills_it_is_an_overflow(module):
    with closing(LocalSampler(module)) as sampler:
        fits, cut, full = ask(sampler, [(5,) * 506, (5,) * 509, (5,) * 512])
    assert len(fits.ids) == 6
    assert (len(cut.ids), cut.finish_reason) == (3, "length")
    assert isinstance(full, ContextOverflowError)
    assert str(full) == "a prompt of 512 tokens fills the model's context of 512"


@pytest.mark.parametrize(("setting", "value"), [("top_p", 0.9), ("top_k", 20)])
def test_settings_that_cut_the_distribution_are_refused_by_name(module, setting, value):
    with closing(LocalSampler(module)) as sampler, pytest.raises(PolicyError, match=f"{setting}={value}: the in-process sampler"):
        asyncio.run(sampler.sample((5,), SamplingParams(max_tokens=1, **{setting: value}), key=SampleKey(0, 0, 0, 0)))


def test_an_empty_prompt_is_refused_and_harms_nobody_else(module):
    with closing(LocalSampler(module)) as sampler:
        empty, other = ask(sampler, [(), (5, 8)])
    assert isinstance(empty, PolicyError)
    assert str(empty) == "the prompt is empty; give one token at least"
    assert len(other.ids) == 6


def test_what_breaks_a_batch_reaches_each_caller_and_the_next_batch_is_sampled(module):
    with closing(LocalSampler(module)) as sampler:
        outcomes = ask(sampler, [(5, 8), (5, 99_999), (7,)])
        assert [type(one) for one in outcomes] == [PolicyError] * 3
        assert all(str(one).startswith("sampling failed: IndexError: ") for one in outcomes)
        assert len(ask(sampler, [(5, 8)])[0].ids) == 6


def test_a_caller_that_gives_up_does_not_disturb_the_others(module):
    async def give_up(sampler):
        params = SamplingParams(max_tokens=6)
        first = asyncio.create_task(sampler.sample((5,), params, key=SampleKey(0, 0, 0, 0)))
        second = asyncio.create_task(sampler.sample((6,), params, key=SampleKey(0, 1, 0, 0)))
        await asyncio.sleep(0)
        first.cancel()
        return await asyncio.wait_for(second, timeout=30)

    with closing(LocalSampler(module)) as sampler:
        assert len(asyncio.run(give_up(sampler)).ids) == 6


def test_closing_ends_the_thread_and_refuses_what_comes_after(module):
    sampler = LocalSampler(module)
    assert "local-sampler" in {one.name for one in threading.enumerate()}
    sampler.close()
    sampler.close()
    assert "local-sampler" not in {one.name for one in threading.enumerate()}
    (outcome,) = ask(sampler, [(5,)])
    assert isinstance(outcome, PolicyError)
    assert str(outcome) == "the sampler is closed"
