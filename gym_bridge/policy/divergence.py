"""How far one policy has gone from another, at tokens that it sampled itself. n = sampled tokens of a sequence."""

from collections.abc import Sequence

from torch import Tensor

from gym_bridge.algorithms.kl import kl_estimates
from gym_bridge.policy.frozen_model import FrozenModel
from gym_bridge.schemas.tokens import TrainingSequence


def divergence(sequences: Sequence[TrainingSequence], policy: FrozenModel, baseline: FrozenModel) -> list[Tensor]:
    """For each sequence that `policy` sampled the estimates k3 [n] of KL(policy || baseline) at its tokens, in nats.

    Both read the tokens anew, so that no difference between sampler and trainer is in them. Raises PolicyError when memory
    runs out.
    """
    both = zip(policy.logprobs(sequences), baseline.logprobs(sequences), strict=True)
    return [kl_estimates(ours, theirs, estimator="k3") for ours, theirs in both]
