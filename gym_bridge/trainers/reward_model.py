"""A reward model on pairs of a chosen and a rejected conversation: a scalar head scores the whole, prompt and all.

The score is read where transformers reads it, at the last token that is not the padding token, so that the checkpoint scores alike
there and as resource server `reward_model`. There is no dropout, and no other pair's answers serve as rejected ones.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from gym_bridge.algorithms.preference_losses import bradley_terry_loss
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.seams import Loss, LossFn, TrainedTokens
from gym_bridge.schemas.settings import RewardModelAlgorithm, RewardModelData, RewardModelSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.chat_samples import number_of
from gym_bridge.tokens.preference_samples import preference_pair
from gym_bridge.tokens.renderers import Renderer
from gym_bridge.tokens.sample_files import SampleReader, Unit, renderer_identity
from gym_bridge.trainers.dpo import HISTORY_REWRITTEN, pair_metrics
from gym_bridge.trainers.epochs import Dataset, EpochSource


def scored_pair_reader(settings: RewardModelData, renderer: Renderer) -> SampleReader:
    """Reads preference rows as units of two sequences, the chosen one first, with the pair's margin."""

    def read(row: Row) -> Unit | str:
        pair = preference_pair(row, renderer, train_on=settings.train_on)
        if pair is None:
            return HISTORY_REWRITTEN
        wanted = 0.0 if settings.margin is None else number_of(row, settings.margin, name="margin")
        return replace(pair[0], margin=wanted), pair[1]

    options = {"train_on": settings.train_on, "margin": settings.margin}
    identity = {"trainer": "rm", "renderer": renderer_identity(renderer), **options}
    return SampleReader(open=lambda path: read, identity=identity, whole=True)


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

    def __init__(self, pairs: Dataset, settings: RewardModelSettings, *, pad_id: int | None, num_shares: int = 1):
        super().__init__(
            pairs.with_units(read_at_the_end(pairs.units, pad_id)),
            batch_size=settings.algorithm.batch_size,
            epochs=settings.algorithm.epochs,
            seed=settings.trainer.seed,
            policy=settings.policy,
            num_shares=num_shares,
        )


def read_at_the_end(pairs: Sequence[Unit], pad_id: int | None) -> list[Unit]:
    """The pairs, of each side of which only the token trains at which its score is read."""
    return [tuple(_read_at_the_end(one, pad_id) for one in pair) for pair in pairs]


def _read_at_the_end(sequence: TrainingSequence, pad_id: int | None) -> TrainingSequence:
    mask = np.zeros(len(sequence.token_ids), dtype=bool)
    mask[np.flatnonzero(sequence.token_ids != pad_id)[-1]] = True
    return replace(sequence, train_mask=mask)
