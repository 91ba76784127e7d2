"""TRL's GRPO losses on the same tensors: padded rows there, packed tokens here."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from gym_bridge.trainers.policy_loss import policy_loss
from tests.trainers.columns_stage import trained_tokens
from tests.trainers.experience_stage import grpo

pytestmark = pytest.mark.slow  # importing trl takes long

LENGTHS = torch.tensor([3, 8, 1, 5])
LONGEST = 8
CASES = {
    "grpo": ({"loss_type": "grpo"}, {"normalise_by": "sequences"}),
    "dapo, clip higher": ({"loss_type": "dapo", "epsilon_high": 0.28}, {"clip_high": 0.28}),
    "dual clip": ({"loss_type": "dapo", "delta": 1.3}, {"dual_clip": 1.3}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"normalise_by": "fixed"}),
    "gspo": (
        {"loss_type": "grpo", "level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
        {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04, "normalise_by": "sequences"},
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.2}),
    "kl": ({"loss_type": "dapo", "beta": 0.3}, {"beta": 0.3}),
    "entropy": ({"loss_type": "dapo", "entropy": 0.1}, {"entropy_bonus": 0.1}),
}


def trl_loss(new, entropies, padded, mask, options):
    """The loss of GRPOTrainer, whose model says `new` and `entropies`."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    here = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, entropies, None),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda one: one, reduce=lambda one, reduction: one, sync_gradients=False
        ),
        args=SimpleNamespace(delta=options.get("delta"), use_bias_correction_kl=True, steps_per_generation=1),
        _metrics={"train": defaultdict(list)},
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        loss_type=options["loss_type"],
        importance_sampling_level=options.get("level", "token"),
        epsilon_low=options.get("epsilon_low", 0.2),
        epsilon_high=options.get("epsilon_high", 0.2),
        beta=options.get("beta", 0.0),
        entropy_coef=options.get("entropy", 0.0),
        _entropy_bonus_enabled="entropy" in options,
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
    )
    nothing = torch.zeros(len(LENGTHS), 1, dtype=torch.int64)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
        "advantages": padded["advantages"][:, 0],
        "old_per_token_logps": padded["old"],
        "ref_per_token_logps": padded["ref"],
    }
    loss = GRPOTrainer._compute_loss(here, None, inputs)  # pyright: ignore[reportArgumentType]
    return loss, {name: values[-1] for name, values in here._metrics["train"].items()}


@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_clipping_equal_trls(name):
    theirs, ours = CASES[name]
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), LONGEST)
    mask = (torch.arange(LONGEST) < LENGTHS[:, None]).long()
    old, shift, ref, entropies, spread = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    padded = {"old": old - 2, "ref": old - 2 + 0.3 * ref, "advantages": spread[:, :1].expand(shape)}
    new = (padded["old"] + 0.3 * shift).requires_grad_()
    entropies = entropies.abs().requires_grad_()
    expected, metrics = trl_loss(new, entropies, padded, mask, theirs)
    wanted = torch.autograd.grad(expected, (new, entropies), allow_unused=True)

    real = mask.bool()
    columns = trained_tokens(
        int(real.sum()),
        rollout_logprobs=padded["old"][real],
        old_logprobs=padded["old"][real],
        ref_logprobs=padded["ref"][real],
        advantages=padded["advantages"][real],
        sequence=torch.repeat_interleave(torch.arange(len(LENGTHS)), LENGTHS),
        num_tokens=int(real.sum()),
        num_sequences=len(LENGTHS),
        entropies=entropies[real],
    )
    found = policy_loss(grpo(sampler={"max_tokens": LONGEST}, **ours))(new[real], columns)
    assert found.value.item() == pytest.approx(expected.item(), abs=1e-12)
    for mine, their in zip(torch.autograd.grad(found.value, (new, entropies), allow_unused=True), wanted, strict=True):
        zero = torch.zeros(shape, dtype=torch.float64)
        torch.testing.assert_close(zero if mine is None else mine, zero if their is None else their, atol=1e-12, rtol=1e-12)
    if "clip_ratio/low_mean" in metrics and name not in ("gspo", "dual clip"):  # of sequences there, and without the bound c
        assert found.metrics["clip_fraction_low"] == pytest.approx(metrics["clip_ratio/low_mean"])
        assert found.metrics["clip_fraction_high"] == pytest.approx(metrics["clip_ratio/high_mean"])
