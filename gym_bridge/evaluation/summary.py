"""What a rollouts file says of a policy, and what two of them say of two policies.

A rollout failed when its row has no reward or carries a failure; it is excluded from every mean and counted. A truncated
rollout keeps the reward that /verify gave it, and is counted too. A task is solved by a reward of 1.0 or more.
"""

import hashlib
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from pydantic import ConfigDict, Field

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.evaluation.estimates import (
    Estimate,
    best_at_k,
    cons_at_k,
    mean_over_tasks,
    mean_reward,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    task_mean,
)
from gym_bridge.evaluation.telling import aligned, markdown_table, number_and_interval
from gym_bridge.schemas.rollouts import FAILURE_CLASS, TASK_INDEX, Row

SOLVED_REWARD = 1.0
ANSWER = "extracted_answer"
"""Where NeMo Gym's verifiers say what they read as the answer; null: none."""


class EvalSummary(StrictModel):
    """One rollouts file in numbers."""

    model_config = ConfigDict(ser_json_inf_nan="strings", allow_inf_nan=True)

    reward: Estimate
    """Mean over tasks of the task's mean reward, with its 95 % interval clustered by task."""
    num_tasks: int
    """Tasks with a reward: those that the means are over."""
    num_tasks_without_reward: int
    """Tasks all of whose rollouts failed, as far as the rows show them; in no mean."""
    num_rollouts: int
    """Rollouts with a reward."""
    num_failed: int
    """Rollouts without a reward; in no mean."""
    num_truncated: int
    """Rollouts with a reward that a limit ended; they count with the reward they got."""
    pass_at_k: dict[int, Estimate]
    """By k the probability that one of k attempts solves a task: a reward of 1.0 or more. A mean over tasks, as those below."""
    pass_hat_k: dict[int, Estimate]
    """By k the probability that all of k attempts solve a task."""
    best_at_k: dict[int, Estimate]
    """By k the expected highest reward of k attempts."""
    cons_at_k: dict[int, Estimate]
    """By k the expected reward of the answer that most of k attempts give, where all rows tell theirs (`extracted_answer`)."""
    by_environment: dict[str, Estimate]
    """Mean reward of the tasks of each environment that rows name: their environment_name, else the name in agent_ref."""
    by_category: dict[str, Estimate]
    """Mean reward of the tasks of each category that rows name."""
    by_component: dict[str, Estimate] = Field(default={})
    """Mean of each part of the reward that rows name in reward_components, over the tasks that have it."""
    spread_within: float | None = None
    """Mean over tasks of the standard deviation of their rewards; None where no task was tried twice."""
    output_tokens: float | None = None
    """Mean of the tokens that the policy wrote in a rollout; None where rows do not tell."""
    num_not_played: int = 0
    """Rollouts that were asked for and not played, because a budget ended; in no mean."""

    def to_text(self) -> str:
        """Aligned lines for a terminal."""
        return aligned(side_by_side([self]))

    def to_markdown(self) -> str:
        """A Markdown table."""
        return markdown_table(("", "value"), side_by_side([self]))


class Paired(StrictModel):
    """What two rollouts files say of each other, task by task."""

    model_config = ConfigDict(ser_json_inf_nan="strings", allow_inf_nan=True)

    difference: Estimate
    """Mean over the paired tasks of (after - before), with its 95 % interval and the p-value of the paired t-test."""
    tasks_won: int
    """Tasks whose mean reward is higher after."""
    tasks_lost: int
    """Tasks whose mean reward is lower after."""
    tasks_tied: int
    """Tasks whose mean reward is the same."""
    num_tasks_unpaired: int
    """Tasks with a reward in one file only; they are in that file's summary and not in the difference."""

    def sentences(self) -> list[str]:
        """The difference, and the tasks behind it."""
        p_value = self.difference.p_value
        test = "" if p_value is None else ", p < 0.001" if p_value < 0.001 else f", p = {p_value:.3f}"
        unpaired = f"; {self.num_tasks_unpaired} left out, with a reward in one file only" if self.num_tasks_unpaired else ""
        return [
            f"difference: {number_and_interval(self.difference, '+.3f')}{test}",
            f"tasks: {self.tasks_won} won, {self.tasks_lost} lost, {self.tasks_tied} tied{unpaired}",
        ]


class Comparison(Paired):
    """Two rollouts files over the same tasks."""

    before: EvalSummary
    after: EvalSummary

    def to_text(self) -> str:
        """Aligned columns for a terminal, then the difference."""
        return aligned([("", "before", "after"), *self._lines()]) + "\n\n" + "\n".join(self.sentences())

    def to_markdown(self) -> str:
        """A Markdown table, then the difference."""
        table = markdown_table(("", "before", "after"), self._lines())
        return table + "\n\n" + "\n".join(f"- {one}" for one in self.sentences())

    def _lines(self) -> list[tuple[str, ...]]:
        return side_by_side([self.before, self.after])


def summarize(rows: Iterable[Row], *, num_failed: int, ks: Sequence[int] | None = None) -> EvalSummary:
    """The summary of a file's rollouts; `num_failed` more failed and have no row here.

    `ks`: of pass@k and its kin; left out: 1, 2, 4, ... up to the fewest attempts of any task. Raises ConfigError where a
    task has fewer attempts, DataError when no row has a reward, a row has no task index or a reward that is not a finite number,
    or one task index stands for two prompts.
    """
    return _summary(_tally(rows), num_failed, ks)


def compare(
    before_rows: Iterable[Row],
    after_rows: Iterable[Row],
    *,
    num_failed_before: int = 0,
    num_failed_after: int = 0,
    ks: Sequence[int] | None = None,
) -> Comparison:
    """After against before, over the tasks that have a reward in both; `num_failed_*` and `ks` as in `summarize`.

    Tasks match by index. Raises DataError when an index has another `responses_create_params.input` in the other file,
    when no task has a reward in both, and as `summarize` does.
    """
    before, after = _tally(before_rows), _tally(after_rows)
    shared = [task for task in before.rewards if task in after.rewards]
    for task in shared:
        if before.prompts[task] != after.prompts[task]:
            raise DataError(f"task {task} has another prompt before than after; compare two runs of one tasks file")
    summaries = _summary(before, num_failed_before, ks), _summary(after, num_failed_after, ks)
    if not shared:
        raise DataError("no task has a reward both before and after; compare two runs of one tasks file")
    rewards_before = {task: before.rewards[task] for task in shared}
    rewards_after = {task: after.rewards[task] for task in shared}
    gains = [task_mean(rewards_after[task]) - task_mean(rewards_before[task]) for task in shared]
    return Comparison(
        before=summaries[0],
        after=summaries[1],
        difference=paired_difference(rewards_before, rewards_after),
        tasks_won=sum(gain > 0 for gain in gains),
        tasks_lost=sum(gain < 0 for gain in gains),
        tasks_tied=sum(gain == 0 for gain in gains),
        num_tasks_unpaired=len(before.rewards.keys() ^ after.rewards.keys()),
    )


@dataclass(slots=True)
class _Tally:
    """What one pass over the rows collects; `rewards` and `prompts` know the tasks that have a reward."""

    rewards: dict[int, list[float]] = field(default_factory=dict)
    prompts: dict[int, bytes] = field(default_factory=dict)
    tasks: set[int] = field(default_factory=set)
    environments: dict[int, str] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    components: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    """By name and task."""
    answers: dict[int, list[bytes | None]] | None = field(default_factory=dict)
    """As JSON, in the order of the rewards; None where a row does not tell its answer."""
    output_tokens: list[int] = field(default_factory=list)
    num_failed: int = 0
    num_truncated: int = 0


def _tally(rows: Iterable[Row]) -> _Tally:
    tally = _Tally()
    for number, row in enumerate(rows, start=1):
        task = row.get(TASK_INDEX)
        if not isinstance(task, int):
            raise DataError(f"row {number}: {TASK_INDEX} is {task!r}, expected a whole number; is this a rollouts file?")
        tally.tasks.add(task)
        if _failed(row):
            tally.num_failed += 1
            continue
        prompt = _prompt_digest(row)
        if tally.prompts.setdefault(task, prompt) != prompt:
            raise DataError(f"row {number}: task {task} has another prompt than in the rows before; one index is one task")
        tally.rewards.setdefault(task, []).append(_reward(row, number))
        for name, value in _components(row):
            tally.components.setdefault(name, {}).setdefault(task, []).append(value)
        agent = row.get("agent_ref")
        environment = row.get("environment_name") or (agent.get("name") if isinstance(agent, dict) else None)
        for name, names in ((environment, tally.environments), (row.get("category"), tally.categories)):
            if isinstance(name, str):
                names.setdefault(task, name)
        if ANSWER not in row:
            tally.answers = None
        elif tally.answers is not None:
            answer = row[ANSWER]
            told = None if answer is None else orjson.dumps(answer, option=orjson.OPT_SORT_KEYS)
            tally.answers.setdefault(task, []).append(told)
        tokens = ((row.get("response") or {}).get("usage") or {}).get("output_tokens")
        tally.output_tokens += [tokens] if isinstance(tokens, int) else []
        tally.num_truncated += bool((row.get("gym_bridge") or {}).get("truncated"))
    return tally


def _failed(row: Row) -> bool:
    """NeMo Gym gives a rollout whose judge broke a reward of 0.0 and a failure class: the class decides."""
    return row.get("reward") is None or bool(row.get(FAILURE_CLASS)) or bool((row.get("gym_bridge") or {}).get("failure"))


def _reward(row: Row, number: int) -> float:
    reward = row["reward"]
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        raise DataError(f"row {number}: reward is {reward!r}, expected a finite number")
    return float(reward)


def _components(row: Row) -> Iterator[tuple[str, float]]:
    parts = row.get("reward_components")
    for name, value in parts.items() if isinstance(parts, dict) else ():
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


def _prompt_digest(row: Row) -> bytes:
    prompt = (row.get("responses_create_params") or {}).get("input")
    return hashlib.sha256(orjson.dumps(prompt, option=orjson.OPT_SORT_KEYS)).digest()


def _summary(tally: _Tally, num_failed: int, ks: Sequence[int] | None) -> EvalSummary:
    num_failed += tally.num_failed
    if not tally.rewards:
        raise DataError(f"no rollout has a reward and {num_failed} failed; the failures file says why")
    attempts = [(len(rewards), sum(reward >= SOLVED_REWARD for reward in rewards)) for rewards in tally.rewards.values()]
    chosen = _chosen_ks(tally.rewards, ks)
    spreads = [statistics.pstdev(rewards) for rewards in tally.rewards.values() if len(rewards) > 1]
    return EvalSummary(
        reward=mean_reward(tally.rewards),
        num_tasks=len(tally.rewards),
        num_tasks_without_reward=len(tally.tasks - tally.rewards.keys()),
        num_rollouts=sum(map(len, tally.rewards.values())),
        num_failed=num_failed,
        num_truncated=tally.num_truncated,
        pass_at_k={k: mean_over_tasks([pass_at_k(*one, k) for one in attempts]) for k in chosen},
        pass_hat_k={k: mean_over_tasks([pass_hat_k(*one, k) for one in attempts]) for k in chosen},
        cons_at_k={} if tally.answers is None else {k: mean_over_tasks(_consensus(tally, tally.answers, k)) for k in chosen},
        by_environment=_by_name(tally, tally.environments),
        by_category=_by_name(tally, tally.categories),
        by_component={name: mean_reward(rewards) for name, rewards in sorted(tally.components.items())},
        best_at_k={k: mean_over_tasks([best_at_k(rewards, k) for rewards in tally.rewards.values()]) for k in chosen},
        spread_within=statistics.fmean(spreads) if spreads else None,
        output_tokens=statistics.fmean(tally.output_tokens) if tally.output_tokens else None,
    )


def _by_name(tally: _Tally, names: Mapping[int, str]) -> dict[str, Estimate]:
    """The mean reward of the tasks of each name."""
    found: dict[str, dict[int, list[float]]] = {}
    for task, rewards in tally.rewards.items():
        if task in names:
            found.setdefault(names[task], {})[task] = rewards
    return {name: mean_reward(found[name]) for name in sorted(found)}


def _consensus(tally: _Tally, answers: Mapping[int, Sequence[bytes | None]], k: int) -> list[float]:
    return [cons_at_k(answers[task], rewards, k) for task, rewards in tally.rewards.items()]


def _chosen_ks(rewards_by_task: Mapping[int, Sequence[float]], ks: Sequence[int] | None) -> list[int]:
    fewest, task = min((len(rewards), task) for task, rewards in rewards_by_task.items())
    if ks is None:
        return [2**power for power in range(fewest.bit_length())]
    if too_many := [k for k in ks if k > fewest]:
        raise ConfigError(f"k={too_many[0]}: task {task} has {fewest} attempts with a reward; play more of each, or lower k")
    return sorted(set(ks))


def side_by_side(summaries: Sequence[EvalSummary]) -> list[tuple[str, ...]]:
    """A label and a value of each summary, line by line; "-" where one has none."""
    columns = [_described(one) for one in summaries]
    labels = dict.fromkeys(label for one in columns for label in one)
    return [(label, *(one.get(label, "-") for one in columns)) for label in labels]


def _described(summary: EvalSummary) -> dict[str, str]:
    """Labels and values of the summary, in reading order."""
    lines = {
        "mean reward": number_and_interval(summary.reward, ".3f"),
        "tasks": f"{summary.num_tasks} with a reward, {summary.num_tasks_without_reward} without",
        "rollouts": f"{summary.num_rollouts} with a reward, of which {summary.num_truncated} truncated",
        "failed": f"{summary.num_failed}, in no mean",
    }
    if summary.spread_within is not None:
        lines["spread"] = f"{summary.spread_within:.3f} within a task, in the mean"
    if summary.output_tokens is not None:
        lines["tokens"] = f"{summary.output_tokens:.1f} a rollout, by the policy"
    for what, found in (("environment", summary.by_environment), ("category", summary.by_category)):
        if len(found) > 1:
            tasks = {
                name: f"{number_and_interval(one, '.3f')}, {one.num_tasks} task{'s' * (one.num_tasks > 1)}"
                for name, one in found.items()
            }
            lines |= {f"{what} {name}": told for name, told in tasks.items()}
    lines |= {f"component {name}": number_and_interval(one, ".3f") for name, one in summary.by_component.items()}
    if summary.num_not_played:
        lines["not played"] = f"{summary.num_not_played}, in no mean: a budget ended"
    solving = {f"pass@{k}": one for k, one in summary.pass_at_k.items()}
    solving |= {f"pass^{k}": one for k, one in summary.pass_hat_k.items() if k > 1}
    solving |= {f"cons@{k}": one for k, one in summary.cons_at_k.items() if k > 1}
    best = {f"best@{k}": one for k, one in summary.best_at_k.items() if k > 1}
    if all(one == summary.pass_at_k[k] for k, one in summary.best_at_k.items()):
        best = {}  # rewards are 0 and 1: that is pass@k
    return lines | {name: number_and_interval(one, ".3f") for name, one in (solving | best).items()}
