"""Whether a reward is fit to train on: known answers in their order, groups with a signal, rollouts that do not fail."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ConfigDict

from gym_bridge.config import StrictModel
from gym_bridge.evaluation.telling import aligned
from gym_bridge.schemas.rollouts import TASK_INDEX, Row

FIT = "Nothing speaks against training this policy on this reward."
NOT_FIT = "This reward, with this policy, is not fit to train on."


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A known answer that was verified."""

    task: int
    kind: str
    """good, bad or adversarial."""
    about: str
    reward: float | None
    """Of the best of the forms in which it was written; None where none of them has one."""


class Bounds(StrictModel):
    """What is asked of a reward; shares from 0 to 1."""

    min_ranked: float
    max_fooled: float
    min_signal: float
    max_failed: float


class Finding(StrictModel):
    """One thing that was looked at."""

    name: str
    ok: bool
    told: str


class KnownAnswers(StrictModel):
    """What known answers of one sort came to."""

    kind: str
    about: str
    num_answers: int
    num_failed: int
    """Those that could not be verified; in no mean."""
    mean_reward: float | None
    fooled: float | None = None
    """Of bad and adversarial ones: the share that got as much as a good answer to the same task, or more; None where no good one
    is known."""


class Batch(StrictModel):
    """What a small batch of the policy's own rollouts came to."""

    num_rollouts: int
    """With a reward."""
    num_failed: int
    num_truncated: int
    num_groups: int
    """Tasks with at least two rewards."""
    num_with_signal: int
    """Of them those whose rewards differ."""
    mean_reward: float | None
    spread_within: float | None
    """Mean over groups of the standard deviation of their rewards."""
    spread_between: float | None
    """Standard deviation of the groups' means."""
    seconds: float | None
    """Of a rollout, from its start to its reward: the mean, with others beside it."""
    output_tokens: float | None
    """That the policy wrote in a rollout: the mean."""
    verify_seconds: float | None
    """Of a rollout that went to the verification: the mean."""


class RewardCheck(StrictModel):
    """The verdict, and what it is drawn from."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    broken: bool
    findings: tuple[Finding, ...]
    known: tuple[KnownAnswers, ...]
    ranked: float | None
    """Share of the pairs of a good and a bad answer to one task of which the good one has the higher reward. None: no such pair."""
    batch: Batch
    bounds: Bounds

    def to_text(self) -> str:
        """For a terminal."""
        header = ("known answer", "", "number", "mean reward", "as good as a right one")
        rows = [
            (one.about, one.kind, str(one.num_answers), _number(one.mean_reward, ".3f"), _number(one.fooled, ".0%"))
            for one in self.known
        ]
        lines = [f"{'ok    ' if one.ok else 'BROKEN'}  {one.name}: {one.told}" for one in self.findings]
        verdict = NOT_FIT if self.broken else FIT
        return "\n".join([aligned([header, *rows]), "", *lines, "", verdict])


def check_reward(scored: Iterable[Scored], rows: Iterable[Row], *, num_failed: int, bounds: Bounds) -> RewardCheck:
    """The verdict on known answers and a batch of rollouts, of which `num_failed` more have no reward."""
    answers = list(scored)
    good = _best_of_good(answers)
    known = _known(answers, good)
    ranked = _ranked(_pairs([one for one in answers if one.kind == "bad"], good))
    batch = _batch(list(rows), num_failed)
    findings = [*_of_known(known, ranked, good, bounds), *_of_batch(batch, bounds)]
    broken = not all(one.ok for one in findings)
    return RewardCheck(broken=broken, findings=tuple(findings), known=known, ranked=ranked, batch=batch, bounds=bounds)


def _known(answers: Sequence[Scored], good: Mapping[int, float]) -> tuple[KnownAnswers, ...]:
    sorts: dict[tuple[str, str], list[Scored]] = defaultdict(list)
    for one in answers:
        sorts[one.kind, one.about].append(one)
    return tuple(_sort(kind, about, found, good) for (kind, about), found in sorts.items())


def _sort(kind: str, about: str, found: Sequence[Scored], good: Mapping[int, float]) -> KnownAnswers:
    rewards = [one.reward for one in found if one.reward is not None]
    pairs = _pairs(found, good)
    return KnownAnswers(
        kind=kind,
        about=about,
        num_answers=len(found),
        num_failed=len(found) - len(rewards),
        mean_reward=_mean(rewards),
        fooled=None if kind == "good" else _mean([worse >= better for better, worse in pairs]),
    )


def _best_of_good(answers: Sequence[Scored]) -> dict[int, float]:
    best: dict[int, float] = {}
    for one in answers:
        if one.kind == "good" and one.reward is not None:
            best[one.task] = max(one.reward, best.get(one.task, one.reward))
    return best


def _pairs(answers: Sequence[Scored], good: Mapping[int, float]) -> list[tuple[float, float]]:
    """The reward of a good answer to the same task, and of each of these, where both have one."""
    return [(good[one.task], one.reward) for one in answers if one.reward is not None and one.task in good]


def _ranked(pairs: Sequence[tuple[float, float]]) -> float | None:
    return _mean([better > worse for better, worse in pairs])


def _batch(rows: Sequence[Row], num_failed: int) -> Batch:
    groups: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        groups[row[TASK_INDEX]].append(float(row["reward"]))
    whole = [rewards for rewards in groups.values() if len(rewards) > 1]
    ours = [row.get("gym_bridge") or {} for row in rows]
    usages = [row["response"].get("usage") or {} for row in rows]
    return Batch(
        num_rollouts=len(rows),
        num_failed=num_failed,
        num_truncated=sum(bool(one.get("truncated")) for one in ours),
        num_groups=len(whole),
        num_with_signal=sum(max(rewards) > min(rewards) for rewards in whole),
        mean_reward=_mean([float(row["reward"]) for row in rows]),
        spread_within=_mean([statistics.pstdev(rewards) for rewards in whole]),
        spread_between=statistics.pstdev([statistics.fmean(rewards) for rewards in whole]) if whole else None,
        seconds=_mean([one["timings_s"]["total"] for one in ours if "total" in one.get("timings_s", {})]),
        output_tokens=_mean([one["output_tokens"] for one in usages if isinstance(one.get("output_tokens"), int)]),
        verify_seconds=_mean([one["timings_s"]["verify"] for one in ours if "verify" in one.get("timings_s", {})]),
    )


def _of_known(known: Sequence[KnownAnswers], ranked: float | None, good: Mapping[int, float], bounds: Bounds) -> Iterable[Finding]:
    judged = [one for one in known if one.kind != "adversarial"]
    lost = sum(one.num_failed for one in judged)
    if lost:
        number = sum(one.num_answers for one in judged)
        told = f"{lost} of {number} known answers have no reward (at most {bounds.max_failed:.0%})"
        yield Finding(name="known answers can be verified", ok=lost / number <= bounds.max_failed, told=told)
    if ranked is not None:
        weakest = max((one for one in known if one.kind == "bad"), key=lambda one: one.fooled or 0.0)
        right = 1.0 - (weakest.fooled or 0.0)
        told = f"in {ranked:.0%} of the pairs of {len(good)} tasks"
        told += f", in {right:.0%} of those with {weakest.about} (at least {bounds.min_ranked:.0%} with each)"
        yield Finding(name="good above bad", ok=right >= bounds.min_ranked, told=told)
    elif not lost:
        told = "no right and wrong answer to one task is known: give rows `known_answers`, and it can be seen"
        yield Finding(name="good above bad", ok=True, told=told)
    tried = [one for one in known if one.kind == "adversarial" and one.fooled is not None]
    fooling = [f"{one.about} ({one.fooled:.0%})" for one in tried if (one.fooled or 0.0) > bounds.max_fooled]
    if tried:
        none = f"of {len(tried)} kinds of adversarial answers none got as much as a good one (in more than {bounds.max_fooled:.0%})"
        told = f"as much as a good answer got {', '.join(fooling)}" if fooling else none
        yield Finding(name="not to be fooled", ok=not fooling, told=told)


def _of_batch(batch: Batch, bounds: Bounds) -> Iterable[Finding]:
    number = batch.num_rollouts + batch.num_failed
    failed = batch.num_failed / number if number else 1.0
    told = f"{batch.num_failed} of {number} failed (at most {bounds.max_failed:.0%})"
    told += f"; {batch.num_truncated} ended at a limit of tokens or turns" if batch.num_truncated else ""
    yield Finding(name="rollouts succeed", ok=failed <= bounds.max_failed, told=told)
    if batch.num_groups:
        signal = batch.num_with_signal / batch.num_groups
        told = (
            f"{batch.num_with_signal} of {batch.num_groups} groups (at least {bounds.min_signal:.0%}); mean reward "
            f"{batch.mean_reward:.3f}, spread within groups {batch.spread_within:.3f}, between them {batch.spread_between:.3f}"
        )
        if not signal:
            told += "; where a limit ends them, raise it"
            told += "; where all fail, warm the policy up by SFT or take easier tasks, where all succeed harder ones"
        yield Finding(name="groups have a signal", ok=signal >= bounds.min_signal, told=told)
    else:
        told = "no task has two rewards, so none can differ" + ("" if batch.num_failed else "; let --num-repeats be 2 or more")
        yield Finding(name="groups have a signal", ok=bounds.min_signal == 0, told=told)
    if batch.seconds is not None:
        verifying, tokens = _number(batch.verify_seconds, ".3f"), _number(batch.output_tokens, ".0f")
        told = f"{batch.seconds:.2f} s with others beside it, of it {verifying} s to verify; {tokens} tokens"
        yield Finding(name="cost of a rollout", ok=True, told=told)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
