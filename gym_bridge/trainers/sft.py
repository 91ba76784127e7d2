"""Supervised fine-tuning on chat rows with tools: the mean negative log-likelihood of assistant tokens.

Every assistant message of a row trains, its closing token too; prompts and tool outputs never do. The mean is over the step's
tokens, so a long answer weighs more than a short one, or over its rows. A row's weight, such as its reward, multiplies its part;
the mean is still over all tokens or rows.
"""

from collections import Counter
from pathlib import Path

from torch import Tensor

from gym_bridge.algorithms.losses import negative_log_likelihood, sequence_negative_log_likelihood
from gym_bridge.schemas.seams import Loss, LossFn, TrainedTokens
from gym_bridge.schemas.settings import SFTAlgorithm, SFTSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.chat_samples import chat_sample
from gym_bridge.tokens.renderers import Renderer
from gym_bridge.trainers.epochs import EpochSource, read_units


def sft_loss(settings: SFTAlgorithm) -> LossFn:
    """Weighted negative log-likelihood, averaged over the step's tokens or its rows."""

    def loss(logprobs: Tensor, columns: TrainedTokens) -> Loss:
        if settings.mean_over == "tokens":
            return Loss(negative_log_likelihood(logprobs, columns.weights, num_tokens=columns.num_tokens))
        return Loss(
            sequence_negative_log_likelihood(logprobs, columns.sequence, columns.weights, num_sequences=columns.num_sequences)
        )

    return loss


def load_samples(
    path: Path, renderer: Renderer, *, max_length: int, weight: str | None = None
) -> tuple[list[TrainingSequence], Counter[str]]:
    """The training sequences of a file of chat rows, and how many rows were dropped and why.

    `weight` names the column of a row's weight, dots lead inwards. Raises DataError with path and line for a row that cannot be
    rendered or has no weight, ConfigError when no row is left.
    """
    units, dropped = read_units(path, lambda row: (chat_sample(row, renderer, weight=weight),), max_length=max_length)
    return [unit[0] for unit in units], dropped


class SFTSource(EpochSource):
    """Steps over the samples."""

    def __init__(self, samples: list[TrainingSequence], settings: SFTSettings):
        super().__init__(
            [(one,) for one in samples],
            batch_size=settings.algorithm.batch_size,
            epochs=settings.algorithm.epochs,
            seed=settings.trainer.seed,
            microbatch_tokens=settings.policy.microbatch_tokens,
        )
