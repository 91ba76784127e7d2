"""The loss that the settings describe, against a slow reference, whole and in microbatches; and what it reports."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.trainers.policy_loss import policy_loss, value_loss
from tests.trainers.columns_stage import trained_tokens
from tests.trainers.slow_policy_loss import Token, slow_loss

LENGTHS = (3, 17, 1, 30, 8)
MAX_TOKENS = 32

CASES = {
    "clipped": {},
    "clip higher, dual clip": {"clip_high": 0.28, "dual_clip": 1.5},
    "sequences": {"normalise_by": "sequences"},
    "fixed": {"normalise_by": "fixed"},
    "fixed by a length of its own": {"normalise_by": "fixed", "fixed_length": 7},
    "sequence ratio": {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.04, "normalise_by": "sequences"},
    "cispo": {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.5},
    "reinforce": {"loss": "reinforce"},
    "k1": {"beta": 0.3, "kl": "k1"},
    "k2": {"beta": 0.3, "kl": "k2", "normalise_by": "sequences"},
    "k3": {"beta": 0.3, "kl": "k3"},
    "kl in the reward": {"beta": 0.3, "kl_in": "reward"},
    "entropy": {"entropy_bonus": 0.1, "normalise_by": "sequences"},
    "tis": {"old_logprobs": "trainer", "correction": "tis", "correction_high": 1.2},
    "icepop": {"old_logprobs": "trainer", "correction": "icepop", "correction_low": 0.8, "correction_high": 1.2},
    "seq_mask": {
        "old_logprobs": "trainer",
        "correction": "seq_mask",
        "correction_low": 0.95,
        "correction_high": 1.05,
        "beta": 0.1,
    },
}


def grpo(max_tokens=MAX_TOKENS, **algorithm):
    played = {"data": {"train": "tasks.jsonl"}, "env": {"server": "arithmetic"}, "sampler": {"max_tokens": max_tokens}}
    return GRPOSettings.model_validate({**played, "algorithm": algorithm})


def random_step(seed=0):
    """Sequences of tokens as plain floats, rounded as nothing else rounds them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(LENGTHS), 6, generator=generator, dtype=torch.float64)
    tokens = [
        Token(
            new=new, old=-2 + 0.3 * a, rollout=-2 + 0.3 * a + 0.2 * b, ref=-2 + 0.6 * c, advantage=advantage, entropy=abs(entropy)
        )
        for a, b, c, advantage, entropy, new in rows.tolist()
    ]
    tokens = [replace(one, new=one.old + 0.3 * one.new) for one in tokens]
    starts = [sum(LENGTHS[:number]) for number in range(len(LENGTHS))]
    return [tokens[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]


def column(sequences, name):
    return torch.tensor([getattr(token, name) for one in sequences for token in one], dtype=torch.float64)


def computed(settings, sequences, *, of=None):
    """Loss, gradients by log-probs and entropies, and metrics of a microbatch of the step that `of` is."""
    step = of or sequences
    leaf, entropies = (column(sequences, name).requires_grad_() for name in ("new", "entropy"))
    columns = trained_tokens(
        len(leaf),
        rollout_logprobs=column(sequences, "rollout"),
        old_logprobs=column(sequences, "old"),
        ref_logprobs=column(sequences, "ref"),
        advantages=column(sequences, "advantage"),
        sequence=torch.tensor([number for number, one in enumerate(sequences) for _ in one]),
        num_tokens=sum(map(len, step)),
        num_sequences=len(step),
        entropies=entropies,
    )
    found = policy_loss(settings)(leaf, columns)
    gradients = torch.autograd.grad(found.value, (leaf, entropies), allow_unused=True)
    return found, [[0.0] * len(leaf) if one is None else one.tolist() for one in gradients]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradient_equal_the_formulas_token_by_token(name, seed):
    settings, sequences = grpo(**CASES[name]), random_step(seed)
    found, (slopes, entropy_slopes) = computed(settings, sequences)
    value, expected, entropy_expected = slow_loss(sequences, settings.algorithm, max_tokens=MAX_TOKENS)
    assert found.value.item() == pytest.approx(value, abs=1e-12)
    assert slopes == pytest.approx(expected, abs=1e-12)
    assert entropy_slopes == pytest.approx(entropy_expected, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_any_cut_into_microbatches_adds_up_to_the_same_loss_gradient_and_metrics(name):
    settings, sequences = grpo(**CASES[name]), random_step()
    whole, (slopes, _) = computed(settings, sequences)
    for cuts in ((1,), (2, 3), (1, 2, 3, 4)):
        edges = [0, *cuts, len(sequences)]
        parts = [computed(settings, sequences[start:end], of=sequences) for start, end in pairwise(edges)]
        assert sum(found.value.item() for found, _ in parts) == pytest.approx(whole.value.item(), abs=1e-12)
        assert [one for _, (part, _) in parts for one in part] == pytest.approx(slopes, abs=1e-12)
        for metric, value in whole.metrics.items():
            assert sum(found.metrics[metric] for found, _ in parts) == pytest.approx(value, abs=1e-12)
        assert max(found.largest["ratio_max"] for found, _ in parts) == whole.largest["ratio_max"]
        assert min(found.smallest["ratio_min"] for found, _ in parts) == whole.smallest["ratio_min"]


def test_each_case_is_a_loss_of_its_own():
    sequences = random_step()
    gradients = {name: computed(grpo(**options), sequences)[1] for name, options in CASES.items() if name != "kl in the reward"}
    assert len({str(one) for one in gradients.values()}) == len(gradients)
    assert computed(grpo(beta=0.3, kl_in="reward"), sequences)[1] == computed(grpo(), sequences)[1]


def metrics_of(new, old, rollout, advantages, **algorithm):
    sequences = [
        [
            Token(new=math.log(n), old=math.log(o), rollout=math.log(r), ref=math.log(o), advantage=a)
            for n, o, r, a in zip(new, old, rollout, advantages, strict=True)
        ]
    ]
    return computed(grpo(**algorithm), sequences)[0]


def test_ratios_and_clipped_tokens_are_reported():
    found = metrics_of([0.4, 0.1, 0.2, 0.8], [0.2, 0.2, 0.2, 0.2], [0.2] * 4, [1.0, -1.0, 1.0, -1.0], dual_clip=3.0)
    assert found.metrics["ratio"] == pytest.approx((2 + 0.5 + 1 + 4) / 4)
    assert found.metrics["clip_fraction"] == 0.75
    assert (found.metrics["clip_fraction_low"], found.metrics["clip_fraction_high"]) == (0.25, 0.5)
    assert (found.largest["ratio_max"], found.smallest["ratio_min"]) == (pytest.approx(4.0), pytest.approx(0.5))


def test_the_gap_is_told_against_the_log_probs_before_the_update_where_the_trainer_computed_them():
    found = metrics_of([0.9, 0.9], [0.2, 0.4], [0.1, 0.8], [1.0, 1.0], old_logprobs="trainer", correction_high=1.9)
    assert found.metrics["gap"] == pytest.approx(2.0)
    assert found.largest["gap_max"] == pytest.approx(math.log(2))
    assert found.metrics["gap_outside"] == 0.5
    # w = 2 and 1/2: w - 1 - log w, and w log w - (w - 1)
    assert found.metrics["kl_rollout_old"] == pytest.approx((1 - math.log(2) - 0.5 + math.log(2)) / 2)
    assert found.metrics["kl_old_rollout"] == pytest.approx((2 * math.log(2) - 1 - 0.5 * math.log(2) + 0.5) / 2)


def test_the_gap_is_told_against_the_log_probs_of_now_where_the_sampler_stands_for_the_old_policy():
    found = metrics_of([0.3, 0.3], [0.1, 0.3], [0.1, 0.3], [1.0, 1.0])
    assert found.metrics["gap"] == pytest.approx(2.0)
    assert found.metrics["gap_outside"] == 0.5
    agreed = metrics_of([0.3], [0.3], [0.3], [1.0])
    assert (agreed.metrics["gap"], agreed.metrics["kl_rollout_old"], agreed.metrics["kl_old_rollout"]) == (1.0, 0.0, 0.0)


def test_the_kl_to_the_reference_is_told_by_k3_where_there_is_one():
    sequences = [[Token(new=-1.0, old=-1.0, rollout=-1.0, ref=-1.5, advantage=1.0)]]
    for algorithm in ({"kl": "k1"}, {"kl_in": "reward"}):
        found = computed(grpo(beta=0.1, **algorithm), sequences)[0]
        assert found.metrics["kl"] == pytest.approx(math.exp(-0.5) - 1 + 0.5)
    assert "kl" not in computed(grpo(), sequences)[0].metrics


@pytest.mark.parametrize("missing", ["old_logprobs", "rollout_logprobs"])
def test_a_token_without_a_log_prob_is_refused(missing):
    columns = trained_tokens(2, rollout_logprobs=[-1.0, -1.0], old_logprobs=[-1.0, -1.0], advantages=[1.0, 1.0])
    columns = replace(columns, **{missing: torch.tensor([-1.0, float("nan")])})
    with pytest.raises(PolicyError, match="the sampler must report one for every token"):
        policy_loss(grpo())(torch.tensor([-1.0, -1.0]), columns)


def test_a_reference_that_said_nothing_is_refused():
    columns = trained_tokens(1, rollout_logprobs=[-1.0], old_logprobs=[-1.0], advantages=[1.0])
    with pytest.raises(PolicyError, match=r"algorithm\.beta=0\.1 .* reference"):
        policy_loss(grpo(beta=0.1))(torch.tensor([-1.0]), columns)


def halved(settings):
    """A loss of a user's own."""
    return lambda logprobs, columns: Loss(-logprobs.sum() * settings.clip_low)


no_function = 3


def test_a_loss_of_ones_own_is_made_of_the_algorithms_settings():
    loss = policy_loss(grpo(loss="tests.trainers.test_policy_loss:halved", clip_low=0.5))
    assert loss(torch.tensor([-3.0, -1.0]), trained_tokens(2)).value.item() == 2.0


def test_a_loss_of_ones_own_that_is_no_function_is_refused():
    with pytest.raises(ConfigError, match="no function of the settings"):
        policy_loss(grpo(loss="tests.trainers.test_policy_loss:no_function"))


def value_columns(num, step, **given):
    return trained_tokens(num, num_tokens=step, **given)


def test_the_value_loss_adds_up_over_microbatches():
    generator = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    loss = value_loss(grpo(estimator="gae", critic={"clip": 0.3}))

    def part(cut):
        return loss(values[cut], value_columns(len(values[cut]), 40, old_values=old[cut], returns=returns[cut]))

    whole, parts = part(slice(0, 40)), [part(slice(0, 13)), part(slice(13, 40))]
    bounded = old + (values - old).clamp(-0.3, 0.3)
    expected = sum(max((v - r) ** 2, (b - r) ** 2) for v, b, r in zip(values, bounded, returns, strict=True)) / 80
    assert whole.value.item() == pytest.approx(float(expected), abs=1e-12)
    assert sum(one.value.item() for one in parts) == pytest.approx(whole.value.item(), abs=1e-12)
    assert whole.metrics["value_loss"] == pytest.approx(whole.value.item())
    assert sum(one.metrics["value_clip_fraction"] for one in parts) == pytest.approx(whole.metrics["value_clip_fraction"])
    assert 0 < whole.metrics["value_clip_fraction"] < 1


def test_values_without_returns_are_refused():
    with pytest.raises(PolicyError, match="estimator=gae"):
        value_loss(grpo())(torch.tensor([1.0]), trained_tokens(1))
