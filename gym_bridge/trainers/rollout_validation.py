"""Validation by playing: held-out tasks, once greedily and some times sampled, with the same random numbers each time."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from gym_bridge.evaluation.estimates import Estimate, mean_reward
from gym_bridge.evaluation.summary import SOLVED_REWARD
from gym_bridge.io.jsonl import dump_line, written_aside
from gym_bridge.io.rollout_log import sibling
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, Group, Rollout, Row
from gym_bridge.schemas.seams import Policy
from gym_bridge.trainers.rollout_metrics import completion_tokens, failures, mean

log = logging.getLogger(__name__)

PlayTasks = Callable[[Sequence[Row], int], list[Group]]
"""(tasks, group_size) -> the group of every task, once all are played by the policy as it is."""
GREEDY, FIRST_SAMPLED = 0, 1
"""Rollout indices of a held-out task: with the seed and the task's index they are what random numbers are drawn from."""


class RolloutValidation:
    """A `Validation` that plays named sets of tasks with `play`, and writes what was played to `output`.

    Each task is played once at temperature 0 and `repeats` times at temperature 1. The sampled rollouts of version 10 stand in
    `output/NAME_step_00000010.jsonl`, the greedy ones in `NAME_step_00000010_greedy.jsonl`; failed ones beside them, in
    `..._failures.jsonl`. No training log knows of them.
    """

    def __init__(self, sets: Mapping[str, Sequence[Row]], play: PlayTasks, *, repeats: int, output: Path):
        self._sets, self._play = sets, play
        self._repeats, self._output = repeats, output

    def run(self, policy: Policy) -> dict[str, float]:
        """`validation/NAME/METRIC` of each set, in the sets' order, the sampled reward first. Raises what `play` raises.

        A set of which every sampled rollout failed has no reward.
        """
        found: dict[str, float] = {}
        for name, tasks in self._sets.items():
            greedy = self._played(tasks, rollout_index=GREEDY, temperature=0.0, group_size=1)
            sampled = self._played(tasks, rollout_index=FIRST_SAMPLED, temperature=1.0, group_size=self._repeats)
            output = self._output / f"{name}_step_{policy.version:08d}.jsonl"
            _write(output, sampled)
            _write(sibling(output, "_greedy.jsonl"), greedy)
            _warn_of_failures(name, sampled)
            found |= {f"validation/{name}/{metric}": value for metric, value in _metrics(sampled, greedy).items()}
        return found

    def _played(self, tasks: Sequence[Row], *, rollout_index: int, temperature: float, group_size: int) -> list[Rollout]:
        rows = [_at_temperature({**task, ROLLOUT_INDEX: rollout_index}, temperature) for task in tasks]
        return sorted((one for group in self._play(rows, group_size) for one in group.rollouts), key=lambda one: one.key)


def _at_temperature(row: Row, temperature: float) -> Row:
    """The task with its temperature replaced; one without parameters fails when it is played."""
    params = row.get("responses_create_params")
    return {**row, "responses_create_params": {**params, "temperature": temperature}} if isinstance(params, dict) else row


def _metrics(sampled: Sequence[Rollout], greedy: Sequence[Rollout]) -> dict[str, float]:
    verified = [one for one in sampled if one.failure is None]
    metrics: dict[str, float] = {}
    if reward := _over_tasks(verified, float):
        metrics |= {"reward": reward.mean, "reward_low": reward.low, "reward_high": reward.high}
    if reward := _over_tasks([one for one in greedy if one.failure is None], float):
        metrics["reward_greedy"] = reward.mean
    if solved := _over_tasks(verified, lambda reward: float(reward >= SOLVED_REWARD)):
        metrics["solved"] = solved.mean
    metrics["truncated"] = mean(one.truncated for one in verified)
    metrics["completion_tokens"] = mean(length for one in verified if (length := completion_tokens(one)) is not None)
    return {name: value for name, value in {**metrics, **failures([*sampled, *greedy])}.items() if math.isfinite(value)}


def _over_tasks(verified: Iterable[Rollout], value_of: Callable[[float], float]) -> Estimate | None:
    """The mean over tasks of the mean over a task's rollouts, with its 95 % interval; None when there is no rollout."""
    values: dict[int, list[float]] = defaultdict(list)
    for one in verified:
        values[one.key.task_index].append(value_of(float(one.row["reward"])))
    return mean_reward(values) if values else None


def _write(output: Path, rollouts: Sequence[Rollout]) -> None:
    """The rows of those with a reward, and beside them those of the others. Raises ConfigError."""
    _write_rows(output, [one for one in rollouts if one.failure is None])
    failed, path = [one for one in rollouts if one.failure is not None], sibling(output, "_failures.jsonl")
    if failed or path.exists():  # of the same version, by a run that was killed
        _write_rows(path, failed)


def _write_rows(path: Path, rollouts: Iterable[Rollout]) -> None:
    with written_aside(path) as file:
        file.writelines(one.line or dump_line(one.row) for one in rollouts)


def _warn_of_failures(name: str, rollouts: Sequence[Rollout]) -> None:
    messages = [one.failure.message for one in rollouts if one.failure is not None]
    if messages and len(messages) == len(rollouts):
        log.warning("validation on %s: all %d sampled rollouts failed, the first with: %s", name, len(messages), messages[0])
