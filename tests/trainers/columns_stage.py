"""Columns of trained tokens for tests of losses: what a test does not give is NaN, as where nothing was computed."""

from typing import Any

import torch

from gym_bridge.schemas.seams import TrainedTokens

NAMES = ("rollout_logprobs", "old_logprobs", "ref_logprobs", "advantages", "returns", "old_values", "weights", "margins")


def trained_tokens(num: int, **given: Any) -> TrainedTokens:
    """Columns of `num` tokens of one sequence, all of the step, unless `given` says otherwise; lists become tensors."""
    values = {name: torch.full((num,), float("nan")) for name in NAMES}
    values |= {"sequence": torch.zeros(num, dtype=torch.int64), "num_tokens": num, "num_sequences": 1}
    values |= {name: torch.tensor(one) if isinstance(one, list) else one for name, one in given.items()}
    return TrainedTokens(**values)
