"""Metrics over many verified rollouts, under NeMo Gym's names: `mean/reward`, `max/reward`, ..."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX


class VerifyResponse(BaseModel):
    """A /verify reply as a client keeps it. Extra keys are allowed: every number among them is a metric."""

    model_config = ConfigDict(frozen=True, extra="allow")
    task_index: int = Field(0, alias=TASK_INDEX)
    rollout_index: int = Field(0, alias=ROLLOUT_INDEX)
    response: dict[str, Any] | None = None

    def numbers(self) -> Iterator[tuple[str, float]]:
        """The finite top-level numbers, a bool as 0 or 1, and those of the response's usage."""
        usage = (self.response or {}).get("usage")
        for name, value in {**(self.model_extra or {}), **(usage if isinstance(usage, dict) else {})}.items():
            if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
                yield name, float(value)


class AggregateRequest(BaseModel):
    """Body of POST /aggregate_metrics; keys beside `verify_responses` are the client's own."""

    model_config = ConfigDict(frozen=True)
    verify_responses: list[VerifyResponse]


def aggregate(responses: Iterable[VerifyResponse]) -> dict[str, Any]:
    """Body of the reply: the metrics of each task in order of its index, of all rollouts, and the means as headline."""
    everything = list(responses)
    tasks: dict[int, list[VerifyResponse]] = defaultdict(list)
    for one in everything:
        tasks[one.task_index].append(one)
    overall = describe(everything)
    return {
        "group_level_metrics": [{**describe(tasks[index]), TASK_INDEX: index} for index in sorted(tasks)],
        "agent_metrics": overall,
        "key_metrics": {name: value for name, value in overall.items() if name.startswith("mean/")},
    }


def describe(responses: Iterable[VerifyResponse]) -> dict[str, float]:
    """Mean, max, min, median and sample standard deviation (0 for a single value) of every number; overflows are left out."""
    columns: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        for name, value in response.numbers():
            columns[name].append(value)
    metrics: dict[str, float] = {}
    with np.errstate(all="ignore"):
        for name, values in columns.items():
            column = np.array(values)
            metrics[f"mean/{name}"] = column.mean()
            metrics[f"max/{name}"] = column.max()
            metrics[f"min/{name}"] = column.min()
            metrics[f"median/{name}"] = np.median(column)
            metrics[f"std/{name}"] = column.std(ddof=1) if len(column) > 1 else 0.0
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
