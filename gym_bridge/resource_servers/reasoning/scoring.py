"""What runs in the scorer's process: the dataset's own scorer."""

from functools import cache
from typing import Any

from gym_bridge.resource_servers.reasoning.answers import may_be_scored
from gym_bridge.resource_servers.reasoning.datasets import kinds

TUPLES = frozenset({"arc_agi", "rearc"})
"""Datasets whose scorers compare with tuples, which JSON made lists."""

kinds()  # imported before the process gives up its rights


def score(*, dataset: str, config: dict[str, Any], entry: dict[str, Any], answer: str | None) -> float:
    """The dataset's score of `answer`, mostly 0 to 1. Raises ValueError for an entry that would be evaluated and should not."""
    evaluated = [entry["answer"], entry["metadata"].get("integrand")]
    if not all(may_be_scored(dataset, text) for text in evaluated if isinstance(text, str)):
        raise ValueError(f"the task's own answer is none of {dataset}")
    if dataset in TUPLES:
        entry = {**entry, "metadata": _as_tuples(entry["metadata"])}
    return float(_dataset(dataset, _frozen(config)).score_answer(answer, entry))


@cache
def _dataset(name: str, config: Any) -> Any:
    dataset_class, config_class = kinds()[name]
    return dataset_class(config_class(**dict(config), seed=0, size=1))


def _frozen(config: dict[str, Any]) -> Any:
    return tuple((name, _as_tuples(value)) for name, value in sorted(config.items()))


def _as_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_as_tuples, value))
    return {key: _as_tuples(one) for key, one in value.items()} if isinstance(value, dict) else value
