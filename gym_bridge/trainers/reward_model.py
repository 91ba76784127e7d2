"""A reward model on pairs of a chosen and a rejected conversation: a scalar head scores the whole, prompt and all.

The score is read where transformers reads it, at the last token that is not the padding token, so that the checkpoint scores alike
there and as resource server `reward_model`. There is no dropout, and no other pair's answers serve as rejected ones.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from gym_bridge.algorithms.preference_losses import bradley_terry_loss
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.seams import Loss, LossFn, TrainedTokens
from gym_bridge.schemas.settings import RewardModelAlgorithm, RewardModelSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.chat_samples import number_of
from gym_bridge.tokens.preference_samples import preference_pair
from gym_bridge.tokens.renderers import Renderer
from gym_bridge.trainers.dpo import pair_metrics
from gym_bridge.trainers.epochs import EpochSource, Unit, read_units


def load_scored_pairs(
    path: Path, renderer: Renderer, *, max_length: int, margin: str | None = None
) -> tuple[list[Unit], Counter[str]]:
    """The (chosen, rejected) sequences of a file of preference rows, and how many pairs were dropped and why.

    `margin` names the column of a pair's margin. Raises DataError with path and line for a row that is no pair or has no margin,
    ConfigError when no pair is left.
    """

    def read(row: Row) -> Unit:
        chosen, rejected = preference_pair(row, renderer)
        wanted = 0.0 if margin is None else number_of(row, margin, name="margin")
        return replace(chosen, margin=wanted), rejected

    return read_units(path, read, max_length=max_length)


def reward_model_loss(settings: RewardModelAlgorithm) -> LossFn:
    """Bradley and Terry's loss over microbatches of (chosen, rejected) sequences, whose values are one score each.

    Reports, as means over the step's pairs, `accuracy`, `margin`, `reward_chosen` and `reward_rejected`.
    """

    def loss(scores: Tensor, columns: TrainedTokens) -> Loss:
        num_pairs = columns.num_sequences // 2
        value = bradley_terry_loss(
            scores[0::2], scores[1::2], columns.margins[0::2], centring=settings.centring, num_pairs=num_pairs
        )
        return Loss(value, pair_metrics(scores.detach(), num_pairs))

    return loss


class RewardModelSource(EpochSource):
    """Steps over the pairs; of each side the token trains at which its score is read."""

    counted = "num_pairs"

    def __init__(self, pairs: Sequence[Unit], settings: RewardModelSettings, *, pad_id: int | None):
        super().__init__(
            [tuple(_read_at_the_end(one, pad_id) for one in pair) for pair in pairs],
            batch_size=settings.algorithm.batch_size,
            epochs=settings.algorithm.epochs,
            seed=settings.trainer.seed,
            microbatch_tokens=settings.policy.microbatch_tokens,
        )


def _read_at_the_end(sequence: TrainingSequence, pad_id: int | None) -> TrainingSequence:
    mask = np.zeros(len(sequence.token_ids), dtype=bool)
    mask[np.flatnonzero(sequence.token_ids != pad_id)[-1]] = True
    return replace(sequence, train_mask=mask)
