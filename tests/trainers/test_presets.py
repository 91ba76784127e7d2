"""All presets on one recorded off-policy step, of rollouts of varied lengths, against plain floats from the papers' formulas."""

import math
from dataclasses import replace
from itertools import combinations, pairwise
from statistics import fmean, pstdev, stdev

import numpy as np
import pytest
import torch

from gym_bridge.schemas.rl_presets import PRESETS
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.trainers.estimators import advantaged
from gym_bridge.trainers.experience import Experience
from gym_bridge.trainers.policy_loss import policy_loss
from tests.policy.stage import open_policy, weights_of
from tests.policy.test_torch_policy import gradients_of_step
from tests.trainers.experience_stage import grpo
from tests.trainers.slow_policy_loss import Token, slow_loss

MAX_TOKENS = 24
LENGTHS = ((3, 24, 9, 14), (20, 2, 7, 11), (5, 8, 6, 4))
REWARDS = ((1.0, 0.0, 0.25, 0.0), (0.0, 1.0, 1.0, 0.5), (0.5, 0.5, 0.5, 0.5))
TRUNCATED = (0, 1)  # the rollout that reached the limit
LR = 1e-3


@pytest.fixture(scope="module")
def recorded(tiny_llama):
    """Groups whose rollouts were sampled a while ago: every log-prob has moved since, and each model says something else."""
    generator = torch.Generator().manual_seed(0)
    shapes = [length for group in LENGTHS for length in group]
    sequences = [
        TrainingSequence(
            token_ids=torch.randint(3, 400, (4 + length,), generator=generator).numpy().astype(np.int32),
            train_mask=np.arange(4 + length) >= 4,
        )
        for length in shapes
    ]
    filled = []
    for sequence, now in zip(sequences, open_policy(tiny_llama).logprobs(sequences), strict=True):
        columns = {name: np.full(len(sequence.token_ids), np.nan, np.float32) for name in NOISE}
        for name, (size, middle) in NOISE.items():
            noise = size * torch.randn(len(now), generator=generator)
            columns[name][sequence.train_mask] = (noise if name == "old_values" else now + middle + noise).numpy()
        filled.append(replace(sequence, **columns))
    members = iter(filled)
    return [
        tuple(experience(next(members), group, place) for place, _ in enumerate(lengths)) for group, lengths in enumerate(LENGTHS)
    ]


NOISE = {"rollout_logprobs": (0.2, 0.0), "old_logprobs": (0.15, 0.0), "ref_logprobs": (0.3, -0.1), "old_values": (0.4, 0.0)}


def experience(sequence, group, place):
    return Experience(
        key=RolloutKey(group, place),
        reward=REWARDS[group][place],
        truncated=(group, place) == TRUNCATED,
        sequences=(sequence,),
        turn_lengths=(sequence.num_trained,),
        trains=True,
    )


def settings_of(preset):
    return grpo(sampler={"max_tokens": MAX_TOKENS}, preset=preset, group_size=4)


def column(sequence, name):
    return getattr(sequence, name)[sequence.train_mask].astype(float).tolist()


def slow_group(rewards, chosen):
    """A group's advantages, by the papers."""
    if chosen.baseline == "none":
        return list(rewards)
    if chosen.baseline == "leave_one_out":
        return [one - (sum(rewards) - one) / (len(rewards) - 1) for one in rewards]
    scale = stdev(rewards) + 1e-6 if chosen.scale == "std" else 1.0
    return [(one - fmean(rewards)) / scale for one in rewards]


def slow_tokens(one, advantage, chosen):
    """Advantages of a rollout's tokens, before the batch is whitened."""
    (sequence,) = one.sequences
    if chosen.estimator == "gae":
        values = column(sequence, "old_values")
        deltas = [after - value for value, after in pairwise(values)] + [one.reward - values[-1]]
        decay = chosen.critic.gamma * chosen.critic.lam
        return [sum(decay ** (m - n) * deltas[m] for m in range(n, len(deltas))) for n in range(len(deltas))]
    found = [advantage] * sequence.num_trained
    if chosen.beta and chosen.kl_in == "reward":
        kl = [mine - ref for mine, ref in zip(column(sequence, "rollout_logprobs"), column(sequence, "ref_logprobs"), strict=True)]
        found = [advantage - chosen.beta * sum(kl[place:]) for place in range(len(kl))]
    return found


def slow_step(groups, chosen):
    """The sequences that train and their advantages, token by token."""
    advantages = [slow_group([one.reward for one in group], chosen) for group in groups]
    kept = [pair for group in range(len(groups)) for pair in zip(groups[group], advantages[group], strict=True)]
    if chosen.estimator == "group" and chosen.baseline != "none":
        kept = [(one, advantage) for one, advantage in kept if len(set(REWARDS[one.key.task_index])) > 1]
    tokens = [slow_tokens(one, advantage, chosen) for one, advantage in kept]
    if chosen.whiten:
        everything = [value for one in tokens for value in one]
        mean, std = fmean(everything), pstdev(everything)
        tokens = [[(value - mean) / (std + 1e-6) for value in one] for one in tokens]
    return [(one.sequences[0], own) for (one, _), own in zip(kept, tokens, strict=True) if one.trains]


def slow_gradients(directory, groups, settings):
    """Loss, gradients and weights after a step whose slope by every log-prob is the slow reference's."""
    chosen = settings.algorithm
    if chosen.overlong_filter:
        groups = [tuple(replace(one, trains=not one.truncated) for one in group) for group in groups]
    policy = open_policy(directory, lr=LR)
    pairs = slow_step(groups, chosen)
    now = policy.logprobs([sequence for sequence, _ in pairs])
    old = "old_logprobs" if chosen.old_logprobs == "trainer" else "rollout_logprobs"
    tokens = [
        [
            Token(new=new, old=before, rollout=rollout, ref=ref, advantage=advantage)
            for new, before, rollout, ref, advantage in zip(
                new.tolist(),
                column(sequence, old),
                column(sequence, "rollout_logprobs"),
                column(sequence, "ref_logprobs"),
                advantages,
                strict=True,
            )
        ]
        for new, (sequence, advantages) in zip(now, pairs, strict=True)
    ]
    value, slopes, _ = slow_loss(tokens, chosen, max_tokens=MAX_TOKENS)
    linear = torch.tensor(slopes, dtype=torch.float32)
    gradients, _ = gradients_of_step(
        policy, [[sequence for sequence, _ in pairs]], lambda logprobs, columns: Loss((linear * logprobs).sum())
    )
    return value, gradients, weights_of(policy)


def fast_gradients(directory, groups, settings):
    """The same by the trainer's own functions, cut into microbatches."""
    chosen = settings.algorithm
    groups = [
        tuple(
            replace(
                one,
                trains=not (chosen.overlong_filter and one.truncated),
                sequences=tuple(
                    replace(
                        sequence,
                        old_logprobs=sequence.old_logprobs if chosen.old_logprobs == "trainer" else None,
                        old_values=sequence.old_values if chosen.estimator == "gae" else None,
                        ref_logprobs=sequence.ref_logprobs if chosen.beta else None,
                    )
                    for sequence in one.sequences
                ),
            )
            for one in group
        )
        for group in groups
    ]
    trained = [sequence for group in advantaged(groups, settings) for rollout in group for sequence in rollout]
    policy = open_policy(directory, lr=LR)
    gradients, result = gradients_of_step(policy, [trained[:2], trained[2:5], trained[5:]], policy_loss(settings))
    return result.metrics, gradients, weights_of(policy)


@pytest.fixture(scope="module")
def steps(tiny_llama, recorded):
    """What each preset makes of the recorded step."""
    return {name: fast_gradients(tiny_llama, recorded, settings_of(name)) for name in PRESETS}


def furthest(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_takes_the_step_of_its_paper(tiny_llama, recorded, steps, preset):
    value, gradients, weights = slow_gradients(tiny_llama, recorded, settings_of(preset))
    metrics, found, stepped = steps[preset]
    assert metrics["loss"] == pytest.approx(value, rel=1e-5, abs=1e-6)
    largest = max(float(one.abs().max()) for one in gradients.values())
    assert largest > 1e-4
    assert furthest(found, gradients) <= 1e-5 * largest
    moved = torch.cat([(stepped[name] - weights[name]).abs().flatten() for name in weights])
    assert float((moved > 0.01 * LR).float().mean()) < 0.001  # all but weights whose gradient is nothing but rounding


def test_all_presets_give_different_weights(steps):
    for (_, _, first), (_, _, second) in combinations(steps.values(), 2):
        assert furthest(first, second) > 0.1 * LR


def test_the_recorded_step_is_off_policy_and_clips(steps):
    for name in ("grpo", "dapo", "dr_grpo", "gspo", "reinforce_pp", "ppo"):
        metrics, _, _ = steps[name]
        assert 0 < metrics["clip_fraction"] < 1, name
        assert metrics["gap"] > 1.01
        assert math.isfinite(metrics["ratio_max"])
