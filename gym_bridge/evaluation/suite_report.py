"""What a suite found: each policy on each set of tasks, and what it lost or won against the baseline."""

from collections.abc import Callable, Iterator

from pydantic import ConfigDict, Field

from gym_bridge.config import StrictModel
from gym_bridge.evaluation.drift import Drift
from gym_bridge.evaluation.summary import EvalSummary, Paired, side_by_side
from gym_bridge.evaluation.telling import Cells, aligned, markdown_table


class SetReport(StrictModel):
    """One set of tasks."""

    model_config = ConfigDict(ser_json_inf_nan="strings", allow_inf_nan=True)

    policies: dict[str, EvalSummary]
    """By policy, the baseline among them."""
    against_baseline: dict[str, Paired]
    """By policy: it after, the baseline before."""
    drift: dict[str, Drift] = Field(default={})
    """By policy how far it has gone from the baseline, where that was asked for."""

    def sentences(self) -> dict[str, list[str]]:
        """By policy what it gained against the baseline, and how far it has gone from it."""
        drifts = {policy: [one.sentence()] for policy, one in self.drift.items()}
        return {policy: [*paired.sentences(), *drifts.get(policy, [])] for policy, paired in self.against_baseline.items()}


class SuiteReport(StrictModel):
    """All sets."""

    sets: dict[str, SetReport]
    baseline: str | None
    max_regression: float | None

    @property
    def regressions(self) -> list[str]:
        """A sentence for each policy and set of which the loss may be larger than `max_regression`, or is not known whole."""
        if self.max_regression is None:
            return []
        return [
            f"{name}: {policy} {told}"
            for name, one in self.sets.items()
            for policy, paired in one.against_baseline.items()
            for told in self._regressions_of(paired)
        ]

    def _regressions_of(self, paired: Paired) -> Iterator[str]:
        assert self.max_regression is not None, "asked for with a bound alone"
        if paired.difference.low < -self.max_regression:
            lost = f"may have lost {-paired.difference.low:.3f} against {self.baseline}"
            yield f"{lost}, more than max_regression={self.max_regression:g}"
        if paired.num_tasks_unpaired:
            tasks = f"{paired.num_tasks_unpaired} task{'s' * (paired.num_tasks_unpaired > 1)}"
            yield f"or {self.baseline} has no reward for {tasks} at all, for which no bound is known"

    def to_text(self) -> str:
        """A table a set, for a terminal."""
        return self._told(str.upper, lambda header, lines: aligned([header, *lines]))

    def to_markdown(self) -> str:
        """A section a set."""
        return self._told(lambda name: f"## {name}\n", markdown_table, item="- ")

    def _told(self, title: Callable[[str], str], table: Callable[[tuple[str, ...], Cells], str], *, item: str = "") -> str:
        parts = []
        for name, one in self.sets.items():
            parts += [title(name), table(("", *one.policies), side_by_side([*one.policies.values()]))]
            told = [f"{policy} against {self.baseline}, {found}" for policy, gains in one.sentences().items() for found in gains]
            parts += ["", *(item + sentence for sentence in told)] if told else []
            parts.append("")
        return "\n".join([*parts, *(item + sentence for sentence in self.regressions)]).rstrip()
