"""Rows for NeMo RL's BinaryPreferenceDataset: {"prompt", "chosen", "rejected"}, three strings."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gym_bridge.schemas.rollouts import Row
from gym_bridge.transforms.format import Example, Format, Tally
from gym_bridge.transforms.response import response_row


@dataclass(slots=True)
class Siblings:
    """What a pair needs of the rollouts of one task: the first of the best, the first of the worst, how many there are."""

    best: Example
    worst: Example
    count: int = 1

    def add(self, example: Example) -> None:
        """Take one more rollout of the task into account."""
        self.count += 1
        if example.reward > self.best.reward:
            self.best = example
        if example.reward < self.worst.reward:
            self.worst = example

    @property
    def margin(self) -> float:
        """Reward of the best minus reward of the worst."""
        return self.best.reward - self.worst.reward

    def drop_reason(self, min_margin: float) -> str | None:
        """Why the task gives no pair: no_partner, tie, small_margin or same_answer; None when it gives one."""
        if self.count == 1:
            return "no_partner"
        if self.margin == 0:
            return "tie"
        if self.margin <= min_margin:
            return "small_margin"
        return "same_answer" if self.best.row["output"] == self.worst.row["output"] else None

    def row(self) -> Row:
        """The preference pair. Lists of the provenance name the chosen rollout first."""
        pair = (self.best, self.worst)
        provenance = {
            "task": self.best.task,
            "rollout_index": [one.rollout_index for one in pair],
            "margin": self.margin,
            "source": [one.source for one in pair],
        }
        return {
            "prompt": self.best.row["input"],
            "chosen": self.best.row["output"],
            "rejected": self.worst.row["output"],
            "gym_bridge": provenance,
        }


def pair_rows(examples: Iterable[Example], tally: Tally, *, min_margin: float) -> Iterator[Row]:
    """One row a task whose best and worst reward differ by more than `min_margin`; its other rollouts are `spare`.

    Siblings share their task and the text of their prompt: an environment that deals a new hand at each reset makes no pair.
    """
    groups: dict[tuple[str, str], Siblings] = {}
    for example in examples:
        key = (example.task, example.row["input"])
        if key in groups:
            groups[key].add(example)
        else:
            groups[key] = Siblings(example, example)
    for group in groups.values():
        if reason := group.drop_reason(min_margin):
            tally.dropped[reason] += group.count
            continue
        if group.count > 2:
            tally.dropped["spare"] += group.count - 2
        tally.rows_used += 2
        yield group.row()


DPO = Format(row=response_row, pairs=True)
