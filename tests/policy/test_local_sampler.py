import asyncio
import random
import threading
from contextlib import closing

import pytest
import torch

from gym_bridge.api.models import model_directory
from gym_bridge.errors import ContextOverflowError, DataError, PolicyError
from gym_bridge.policy.loading import load_module
from gym_bridge.policy.samplers import local
from gym_bridge.policy.samplers.generation import generate
from gym_bridge.policy.samplers.local import LocalSampler, local_sampler
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.seams import TurnRequest
from gym_bridge.schemas.settings import SamplerSettings
from gym_bridge.schemas.tokens import SampleKey, SamplingParams, TurnTokens
from gym_bridge.tokens.renderers import load_renderer
from gym_bridge.tokens.trajectory import build_trajectory, training_sequences
from tests.policy.stage import open_policy, weighted


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


def test_what_was_computed_is_kept_while_rollouts_are_in_flight_and_weights_stay(module):
    computed = []
    hook = module.get_input_embeddings().register_forward_hook(lambda _, args, __: computed.append(args[0].numel()))

    def prompt_tokens():
        computed.clear()
        ask(sampler, [tuple(range(90))])
        return computed[0]

    with closing(LocalSampler(module)) as sampler:
        sampler.expect(1)
        assert [prompt_tokens(), prompt_tokens()] == [90, 1]
        sampler.expect(0)  # nobody goes on
        sampler.expect(1)
        assert [prompt_tokens(), prompt_tokens()] == [90, 1]
        sampler.push([], 1)
        assert prompt_tokens() == 90
    hook.remove()


def test_a_completion_ends_with_the_context_and_a_prompt_that_fills_it_is_an_overflow(module):
    with closing(LocalSampler(module)) as sampler:
        fits, cut, full = ask(sampler, [(5,) * 506, (5,) * 509, (5,) * 512])
    assert len(fits.ids) == 6
    assert (len(cut.ids), cut.finish_reason) == (3, "length")
    assert isinstance(full, ContextOverflowError)
    assert str(full) == "a prompt of 512 tokens fills the model's context of 512"


def test_nothing_is_kept_for_rollouts_that_ended_while_a_batch_was_under_way(module, monkeypatch):
    computed, sampled, told = [], threading.Event(), threading.Event()

    def held(tree, requests):
        generate(tree, requests)
        sampled.set()
        assert told.wait(30)

    monkeypatch.setattr(local, "generate", held)
    with closing(LocalSampler(module)) as sampler:
        sampler.expect(1)
        first = threading.Thread(target=ask, args=(sampler, [tuple(range(90))]))
        first.start()
        assert sampled.wait(30)
        sampler.expect(0)
        sampler.expect(1)
        told.set()
        first.join()
        hook = module.get_input_embeddings().register_forward_hook(lambda _, args, __: computed.append(args[0].numel()))
        ask(sampler, [tuple(range(90))])
        hook.remove()
    assert computed[0] == 90


@pytest.mark.parametrize(("setting", "value"), [("top_p", 0.9), ("top_k", 20)])
def test_settings_that_cut_the_distribution_are_refused_by_name(module, setting, value):
    with closing(LocalSampler(module)) as sampler, pytest.raises(DataError, match=f"{setting}={value}: the in-process sampler"):
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


NUM_TURNS = {key: 1 + key * 5 % 4 for key in range(10)}  # 1 to 4, so that rollouts end one after another
FAILS = 7  # its rollout ends in the middle


def play(sampler, *, timing, groups=5, patience=60.0):
    """The turns of rollouts that answer tools after a random time, in twos from the same prompt, by rollout."""
    draw = random.Random(timing)
    in_flight = len(NUM_TURNS)

    def ended():
        nonlocal in_flight
        in_flight -= 1
        sampler.expect(in_flight)

    async def rollout(index):
        turns, prompt = [], [3, 9, 4, *range(50, 50 + index % groups * 3)]
        try:
            for turn in range(NUM_TURNS[index]):
                await asyncio.sleep(draw.random() / 15)
                if index == FAILS and turn:
                    raise ConnectionError("the tool is gone")
                params = SamplingParams(max_tokens=4 + 3 * turn, stop_token_ids=tuple(range(0, 400, 9)))
                one = await sampler.sample(prompt, params, key=SampleKey(0, index % groups, index // groups, turn))
                starts = not turns
                turns.append(
                    TurnTokens(
                        prompt_ids=tuple(prompt),
                        completion_ids=one.ids,
                        logprobs=one.logprobs,
                        policy_version=one.policy_version,
                        starts_segment=starts,
                    )
                )
                prompt = [*prompt, *one.ids, 1, *range(300, 304 + index % 3), 2]
        finally:
            ended()
        return turns

    async def all_at_once():
        sampler.expect(in_flight)
        return await asyncio.wait_for(asyncio.gather(*map(rollout, NUM_TURNS), return_exceptions=True), timeout=patience)

    return [None if isinstance(one, ConnectionError) else one for one in asyncio.run(all_at_once())]


@pytest.fixture
def batches(monkeypatch):
    """(task, rollout, turn) of every batch that is sampled from now on."""
    seen, generate = [], local.generate

    def spy(module, requests):
        seen.append([tuple(one.key[1:]) for one in requests])
        generate(module, requests)

    monkeypatch.setattr(local, "generate", spy)
    return seen


@pytest.mark.parametrize("max_batch", [64, 4])
def test_in_lockstep_rollouts_are_the_same_bit_for_bit_whatever_the_timing(module, batches, max_batch):
    played, sampled = [], []
    for timing in range(3):
        with closing(LocalSampler(module, lockstep=True, max_batch=max_batch)) as sampler:
            played.append(play(sampler, timing=timing))
        sampled.append(batches.copy())
        batches.clear()
    assert played[0] == played[1] == played[2]
    assert sampled[0] == sampled[1] == sampled[2]
    assert played[0][FAILS] is None
    assert [len(turns) for turns in played[0] if turns] == [NUM_TURNS[index] for index in NUM_TURNS if index != FAILS]


def test_in_lockstep_a_batch_holds_every_rollout_that_has_such_a_turn(module, batches):
    with closing(LocalSampler(module, lockstep=True, max_batch=4)) as sampler:
        play(sampler, timing=0)
    wanted = [
        sorted(
            (index % 5, index // 5, turn) for index, turns in NUM_TURNS.items() if turns > turn and not (turn and index == FAILS)
        )
        for turn in range(4)
    ]
    assert batches == [turn[first : first + 4] for turn in wanted for first in range(0, len(turn), 4)]


def test_in_lockstep_a_rollout_that_never_asks_holds_the_others_back_until_it_ends(module, batches):
    async def scene(sampler):
        sampler.expect(2)
        asked = asyncio.create_task(sampler.sample((5,), SamplingParams(max_tokens=2), key=SampleKey(0, 0, 0, 0)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asked), timeout=0.2)
        assert batches == []
        sampler.expect(1)
        return await asyncio.wait_for(asked, timeout=30)

    with closing(LocalSampler(module, lockstep=True)) as sampler:
        assert len(asyncio.run(scene(sampler)).ids) == 2


def test_without_lockstep_a_batch_starts_without_those_that_are_not_there(module, batches):
    with closing(LocalSampler(module)) as sampler:
        sampler.expect(2)
        ask(sampler, [(5,)])
    assert batches == [[(0, 0, 0)]]


def test_a_completion_that_is_under_way_when_weights_come_carries_the_version_that_sampled_it(module, monkeypatch):
    begun, pushed, generate = threading.Event(), threading.Event(), local.generate

    def held(module, requests):
        begun.set()
        generate(module, requests)
        assert not pushed.wait(0.1)  # the push waits for the end of the batch

    monkeypatch.setattr(local, "generate", held)

    def push():
        begun.wait()
        sampler.push([], 7)
        pushed.set()

    with closing(LocalSampler(module)) as sampler:
        thread = threading.Thread(target=push)
        thread.start()
        assert ask(sampler, [(5,)])[0].policy_version == 0
        thread.join()
        assert sampler.version == 7


def test_a_caller_that_gives_up_ends_its_row(module, monkeypatch):
    async def scene(sampler):
        params = SamplingParams(max_tokens=400)
        one = asyncio.create_task(sampler.sample((5,), params, key=SampleKey(0, 0, 0, 0)))
        while not requests:
            await asyncio.sleep(0.001)
        one.cancel()
        await asyncio.wait([one])

    requests, generate = [], local.generate

    def spy(module, batch):
        requests.extend(batch)
        generate(module, batch)

    monkeypatch.setattr(local, "generate", spy)
    with closing(LocalSampler(module)) as sampler:
        asyncio.run(scene(sampler))
    assert len(requests[0].ids) < 400


def gap(policy, played):
    """The largest difference of a reported log-prob from the trainer's, over whole rollouts, and how many there are."""
    sequences = [
        one
        for index, turns in enumerate(played)
        if turns
        for one in training_sequences(build_trajectory(RolloutKey(index % 5, index // 5), turns), advantage=1.0)
    ]
    found = policy.logprobs(sequences)
    differences = torch.cat(
        [
            (logprobs - torch.from_numpy(one.rollout_logprobs[one.train_mask])).abs()
            for one, logprobs in zip(sequences, found, strict=True)
        ]
    )
    return float(differences.max()), len(differences)


def step(policy):
    """Move the weights far enough that log-probs tell."""
    sequence = training_sequences(build_trajectory(RolloutKey(0, 0), TURN), advantage=1.0)
    for _ in range(3):
        policy.step([list(sequence)], weighted)


TURN = (
    TurnTokens(prompt_ids=(5, 8), completion_ids=(9, 20, 31), logprobs=(-1.0, -1.0, -1.0), policy_version=0, starts_segment=True),
)


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "adapters"])
@pytest.mark.parametrize("overlaps", [False, True], ids=["in turns", "overlapping"])
def test_over_many_turns_sampler_and_trainer_agree_after_a_step(tiny_model, lora, overlaps):
    policy = open_policy(tiny_model, lora=lora, lr=1e-2)
    with closing(local_sampler(policy, SamplerSettings(), overlaps=overlaps)) as sampler:
        before = play(sampler, timing=0)
        assert gap(policy, before)[0] < 1e-4
        step(policy)
        assert gap(policy, before)[0] > 1e-2
        sampler.push(policy.weights(), policy.version)
        largest, count = gap(policy, after := play(sampler, timing=0))
    assert largest < 1e-4
    assert count > 50
    assert {turn.policy_version for turns in after if turns for turn in turns} == {3}


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "adapters"])
def test_an_overlapping_sampler_keeps_its_weights_until_others_are_pushed(tiny_llama, lora):
    policy = open_policy(tiny_llama, lora=lora, lr=1e-2)
    with closing(local_sampler(policy, SamplerSettings(lockstep=True), overlaps=True)) as sampler:
        before = play(sampler, timing=0)
        step(policy)
        assert play(sampler, timing=1) == before
        sampler.push(policy.weights(), policy.version)
        assert play(sampler, timing=1) != before


def test_a_sampler_of_its_own_weights_samples_as_that_of_the_policys(tiny_model):
    policy = open_policy(tiny_model, compute_dtype="bfloat16")
    step(policy)
    played = []
    for overlaps in (False, True):
        with closing(local_sampler(policy, SamplerSettings(lockstep=True), overlaps=overlaps)) as sampler:
            played.append(play(sampler, timing=0))
            assert sampler.version == 3
            assert next(sampler.module.parameters()).dtype == torch.bfloat16
    assert played[0] == played[1]


def test_weights_of_another_model_are_refused(tiny_llama):
    policy = open_policy(tiny_llama)
    weights = dict(policy.weights())
    norm = weights.pop("model.norm.weight")
    with closing(local_sampler(policy, SamplerSettings(), overlaps=True)) as sampler:
        with pytest.raises(PolicyError, match=r"no value for 'model\.norm\.weight'"):
            sampler.push(weights.items(), 1)
        with pytest.raises(PolicyError, match="LlamaForCausalLM has no parameter 'norm'"):
            sampler.push({**weights, "norm": norm}.items(), 1)
        assert sampler.version == 0
        sampler.ensure(0)


ADD = {
    "type": "function",
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]},
}


@pytest.mark.slow
def test_a_real_model_with_tools_agrees_with_the_trainer_over_its_turns():
    directory = model_directory("smollm2-135m")
    policy = open_policy(directory)

    async def rollout(endpoint, task, index):
        items, turns, previous = [{"role": "user", "content": f"What is {task + 12} + {31 * task}? Use the tool."}], [], None
        for turn in range(3):
            request = TurnRequest(
                items=tuple(items), tools=(ADD,), params={}, key=SampleKey(0, task, index, turn), previous=previous
            )
            answer = await endpoint.turn(request)
            previous = answer.tokens
            turns.append(previous)
            calls = [one["call_id"] for one in answer.items if one["type"] == "function_call"]
            outputs = [{"type": "function_call_output", "call_id": one, "output": '{"sum": 43}'} for one in calls]
            items += [*answer.items, *(outputs or [{"role": "user", "content": "Again, " * (1 + index)}])]
        return turns

    async def all_at_once(sampler):
        endpoint = SampledEndpoint(sampler, load_renderer(directory), max_tokens=24, model="m")
        return await asyncio.gather(*(rollout(endpoint, task, index) for task in range(2) for index in range(4)))

    with closing(local_sampler(policy, SamplerSettings())) as sampler:
        played = asyncio.run(all_at_once(sampler))
    assert not any(turn.starts_segment for turns in played for turn in turns[1:])
    largest, count = gap(policy, played)
    assert count > 200
    assert largest < 1e-4
