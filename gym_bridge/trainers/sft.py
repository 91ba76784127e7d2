"""Supervised fine-tuning on chat rows with tools: the mean negative log-likelihood of assistant tokens.

Every assistant message of a row trains, its closing token too; prompts and tool outputs never do. The mean is over the step's
tokens, so a long answer weighs more than a short one.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from gym_bridge.algorithms.losses import negative_log_likelihood
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.policy.packing import plan_microbatches
from gym_bridge.schemas.seams import Loss, TrainedTokens, TrainStep
from gym_bridge.schemas.settings import SFTSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.chat_samples import chat_sample
from gym_bridge.tokens.renderers import Renderer


def sft_loss(logprobs: Tensor, columns: TrainedTokens) -> Loss:
    """Negative log-likelihood, averaged over the step's tokens."""
    return Loss(negative_log_likelihood(logprobs, num_tokens=columns.num_tokens))


def load_samples(path: Path, renderer: Renderer, *, max_length: int) -> tuple[list[TrainingSequence], Counter[str]]:
    """The training sequences of a file of chat rows, and how many rows were dropped and why.

    Raises DataError with path and line for a row that cannot be rendered, ConfigError when no row is left.
    """
    samples: list[TrainingSequence] = []
    dropped: Counter[str] = Counter()
    for line, row in read_jsonl(path):
        try:
            sample = chat_sample(row, renderer)
        except DataError as error:
            raise DataError(str(error), path=path, line=line) from error
        if len(sample.token_ids) > max_length:
            dropped["too_long"] += 1
        else:
            samples.append(sample)
    if not samples:
        raise ConfigError(f"{path}: every row has more than data.max_length={max_length} tokens; raise it")
    return samples, dropped


class SFTSource:
    """Steps over `epochs` passes through the samples, each pass in its own seeded order."""

    def __init__(self, samples: list[TrainingSequence], settings: SFTSettings):
        self.samples, self.settings = samples, settings
        self.steps_per_epoch = -(-len(samples) // settings.algorithm.batch_size)
        self.total_steps = self.steps_per_epoch * settings.algorithm.epochs
        self._step = 0

    def next(self) -> TrainStep | None:
        """The next batch; None after the last epoch."""
        epoch, place = divmod(self._step, self.steps_per_epoch)
        if epoch >= self.settings.algorithm.epochs:
            return None
        order = list(range(len(self.samples)))
        random.Random(f"{self.settings.trainer.seed}-{epoch}").shuffle(order)
        size = self.settings.algorithm.batch_size
        batch = sorted(
            (self.samples[index] for index in order[place * size : (place + 1) * size]), key=lambda one: one.token_ids.tolist()
        )
        microbatches = plan_microbatches(batch, max_tokens=self.settings.policy.microbatch_tokens)
        return TrainStep(
            microbatches=microbatches, metrics={"epoch": self._step / self.steps_per_epoch, "num_sequences": len(batch)}
        )

    def stepped(self, version: int) -> None:
        """The step was taken."""
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Steps taken."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last step of `state`."""
        self._step = int(state["step"])

    def close(self) -> None:
        """Nothing runs in the background."""
