"""The settings of offline data: training files, validation sets, lengths. Imports no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from gym_bridge.config import StrictModel


class DataFile(StrictModel):
    """A training file and how often it is read."""

    path: Path
    """JSONL, plain, gzip or zstd."""
    weight: PositiveFloat = 1.0
    """Passes over its rows in one epoch: 2 reads every row twice, 0.25 a quarter of them, another quarter in the next epoch."""


class OfflineData(StrictModel):
    """Rows of files, for any trainer that plays nothing."""

    train: Path | tuple[DataFile, ...]
    """A JSONL file, or several as [{path: a.jsonl, weight: 2}, {path: b.jsonl}]."""
    validation: dict[str, Path] = Field(default={})
    """Held-out files by name, such as {held_out: val.jsonl}; each name begins its metrics: validation/held_out/loss."""
    max_length: PositiveInt = 2048
    """Tokens of a row, or of one side of a pair."""
    over_length: Literal["drop", "cut"] = "drop"
    """What becomes of a longer row: drop it, or cut it after max_length tokens; both are counted."""
    train_on: Literal["all", "final"] = "all"
    """Which answers of a conversation train: all that the model gave, or its last one."""
    cache: bool = True
    """Keep the tokens of a file on disk, by the digests of its rows, its tokenizer and these settings."""

    @field_validator("validation")
    @classmethod
    def _plain_names(cls, named: dict[str, Path]) -> dict[str, Path]:
        """Raises ValueError for a name that would not make a metric's."""
        for name in named:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"the validation set's name {name!r} may hold letters, digits, - and _ only")
        return named

    @property
    def files(self) -> tuple[DataFile, ...]:
        """The training files and their weights."""
        return (DataFile(path=self.train),) if isinstance(self.train, Path) else self.train


class SFTData(OfflineData):
    """Rows for supervised fine-tuning: `{"messages", "tools"}` as `transform --to sft` writes them, `{"input", "output"}` as
    `--to response` does, or rollouts that hold their token ids."""

    weight: str | None = None
    """Column of a row's weight, such as gym_bridge.reward; null: every row has weight 1."""
    min_reward: float | None = None
    """Rollouts of less reward are dropped, and counted; null: none is. Only for rollouts."""


class PreferenceData(OfflineData):
    """Pairs of a chosen and a rejected answer: `{"prompt", "chosen", "rejected"}` or `{"context", "completions", "tools"}` rows, as
    `transform --to dpo` and `--to preference` write them."""


class RewardModelData(PreferenceData):
    """Pairs for a reward model."""

    margin: str | None = None
    """Column of a pair's margin, by which the chosen score should at least exceed the rejected one; null: 0."""
