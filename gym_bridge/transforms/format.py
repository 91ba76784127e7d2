"""What a dataset format is, and the count of rollouts that every format keeps."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One kind of dataset."""

    row: Callable[[RolloutView], Row | None]
    """Columns made of one rollout; None when it ends without an answer. Raises DataError for a rollout that has no such form."""
    pairs: bool = False
    """Siblings of a task make one row of two, best against worst; each row otherwise is one rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """The columns that a format made of one rollout, and where they come from."""

    row: Row
    task: str
    rollout_index: int | None
    reward: float
    source: str
    """`path:line` of the rollout."""


@dataclass(slots=True)
class Tally:
    """Counts rollouts read, used and dropped by reason, and rows written."""

    rows_in: int = 0
    rows_used: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def describe_dropped(self) -> str:
        """`3 low_reward, 1 failure`, the commonest first."""
        return ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
