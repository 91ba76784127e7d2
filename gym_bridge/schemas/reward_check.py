"""The settings of `gym-bridge check-reward`."""

from pathlib import Path

from pydantic import Field, PositiveInt, model_validator

from gym_bridge.schemas.play_settings import PlaySettings, Repeats


class CheckRewardSettings(PlaySettings):
    """`gym-bridge check-reward`."""

    input: Path
    """JSONL of task rows. A row may bring `known_answers`: {good: [...], bad: [...], adversarial: [...]}, each a text, or a list of
    texts, one a turn, and of output items."""
    report: Path
    """The verdict and the figures behind it, as JSON; the rollouts of the batch are kept beside it."""
    limit: PositiveInt | None = 8
    """Look at only the first so many tasks."""
    num_repeats: Repeats = 8
    """Rollouts of each task that the policy plays."""
    min_ranked: float = Field(default=0.75, ge=0, le=1)
    """Share of the tasks, at least, in which a good answer must get more than a bad one, for each kind of bad answer."""
    max_fooled: float = Field(default=0.1, ge=0, le=1)
    """Share of the adversarial answers, at most, that may get as much as a good one to the same task."""
    min_signal: float = Field(default=0.1, ge=0, le=1)
    """Share of the groups, at least, whose rollouts must differ in reward."""
    max_failed: float = Field(default=0.2, ge=0, le=1)
    """Share of the rollouts, at most, that may fail."""

    @model_validator(mode="after")
    def _in_one_process(self) -> "CheckRewardSettings":
        """Raises ValueError for more processes than one."""
        if self.workers > 1:
            raise ValueError("--workers: the check plays in one process")
        return self
