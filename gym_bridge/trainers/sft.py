"""Supervised fine-tuning on chats with tools, prompts with answers, and rollouts: the mean negative log-likelihood of what the
assistant wrote.

Every assistant message of a row trains, its closing token too, or the last one alone; prompts and tool outputs never do. Of
rollouts with token ids exactly what was sampled trains. The mean is over the step's tokens, so a long answer weighs more than a
short one, or over its rows. A row's weight, such as its reward, multiplies its part; the mean is still over all tokens or rows.

A row is one sequence, but for conversations whose template rewrites earlier turns and rollouts whose history was rewritten: these
are several, each of which counts as a row in the mean over rows.
"""

from pathlib import Path

from torch import Tensor

from gym_bridge.algorithms.losses import negative_log_likelihood, sequence_negative_log_likelihood
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.seams import Loss, LossFn, TrainedTokens
from gym_bridge.schemas.settings import SFTAlgorithm, SFTData, SFTSettings
from gym_bridge.tokens.audit.kinds import kind_of
from gym_bridge.tokens.chat_samples import answer_samples, chat_samples
from gym_bridge.tokens.renderers import Renderer
from gym_bridge.tokens.rollout_samples import RolloutSamples
from gym_bridge.tokens.sample_files import ReadRow, SampleReader, Unit, renderer_identity
from gym_bridge.trainers.epochs import Dataset, EpochSource
from gym_bridge.trainers.own_loss import own_loss

EXPECTED = "expected 'messages' (and 'tools'), 'input' and 'output', or rollouts with token ids"


def sft_loss(settings: SFTAlgorithm) -> LossFn:
    """Weighted negative log-likelihood, averaged over the step's tokens or its rows; or the loss that a dotted path names.

    Raises ConfigError for a dotted path that leads to none.
    """
    if ":" in settings.loss:
        return own_loss(settings)

    def loss(logprobs: Tensor, columns: TrainedTokens) -> Loss:
        if settings.mean_over == "tokens":
            return Loss(negative_log_likelihood(logprobs, columns.weights, num_tokens=columns.num_tokens))
        return Loss(
            sequence_negative_log_likelihood(logprobs, columns.sequence, columns.weights, num_sequences=columns.num_sequences)
        )

    return loss


def sft_reader(settings: SFTData, renderer: Renderer) -> SampleReader:
    """Reads rows of the three kinds, told apart by the columns of each."""

    def open_file(path: Path) -> ReadRow:
        rollouts = RolloutSamples(path, train_on=settings.train_on, weight=settings.weight, min_reward=settings.min_reward)

        def read(row: Row) -> Unit | str:
            kind = kind_of(row)
            if kind == "rollouts":
                return rollouts.samples(row)
            if kind not in ("sft", "response"):
                raise DataError(f"{EXPECTED}, found {', '.join(sorted(row)) or 'no columns'}")
            if settings.min_reward is not None:
                raise ConfigError("data.min_reward is for rollouts, and this is none; leave it out")
            if kind == "response":
                return answer_samples(row, renderer, weight=settings.weight)
            return chat_samples(row, renderer, train_on=settings.train_on, weight=settings.weight)

        return read

    identity = {name: getattr(settings, name) for name in ("train_on", "weight", "min_reward")}
    return SampleReader(open=open_file, identity={"trainer": "sft", "renderer": renderer_identity(renderer), **identity})


class SFTSource(EpochSource):
    """Steps over the samples."""

    def __init__(self, data: Dataset, settings: SFTSettings, *, num_shares: int = 1):
        super().__init__(
            data,
            batch_size=settings.algorithm.batch_size,
            epochs=settings.algorithm.epochs,
            seed=settings.trainer.seed,
            policy=settings.policy,
            num_shares=num_shares,
        )
