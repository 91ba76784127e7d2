"""Means over tasks with honest intervals, paired differences, pass@k and its kin. Plain floats in, plain floats out.

The task is the unit: attempts at one task are alike, so they say less than as many tasks would. A task enters with the
mean of its attempts, and tasks vary independently (after Miller 2024, arXiv 2411.00640).
"""

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from gym_bridge.errors import ConfigError

CONFIDENCE = 0.95

Task = TypeVar("Task", bound=Hashable)

RewardsByTask = Mapping[Task, Sequence[float]]
"""The rewards of each task's attempts; every task has at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over tasks with its 95 % interval.

    One task alone says nothing of the spread: its interval is (-inf, inf). Tasks that are all equal give an interval of
    width 0, which says that no spread was seen, not that there is none.
    """

    mean: float
    low: float
    high: float
    num_tasks: int
    p_value: float | None = None
    """Two-sided, of "the true mean is 0"; None where no test was asked for, or where one task alone allows none."""


def mean_reward(rewards_by_task: RewardsByTask[Task]) -> Estimate:
    """The mean over tasks of the task's mean reward.

        mean +- t(0.975, n - 1) s / sqrt(n),   n = tasks, s = sample standard deviation of their means

    Raises ConfigError when there is no task, or a task has no reward or one that is not finite.
    """
    return _estimate(list(_task_means(rewards_by_task).values()))


def paired_difference(before: RewardsByTask[Task], after: RewardsByTask[Task]) -> Estimate:
    """The mean over tasks of (mean reward after - mean reward before), with the p-value of the paired t-test.

    Raises ConfigError when one of the two has a task that the other has not, and as `mean_reward` does.
    """
    for missing_from, ours, theirs in (("after", before, after), ("before", after, before)):
        for task in ours:
            if task not in theirs:
                raise ConfigError(
                    f"task {task!r} is missing from {missing_from!r}; a paired difference needs the same tasks in both"
                )
    means_before, means_after = _task_means(before), _task_means(after)
    differences = [means_after[task] - mean for task, mean in means_before.items()]
    return _estimate(differences, test=True)


def pass_at_k(num_attempts: int, num_solved: int, k: int) -> float:
    """Unbiased probability that at least one of `k` attempts solves the task, `num_solved` of `num_attempts` having done so.

        pass@k = 1 - C(n - c, k) / C(n, k)      (Chen et al. 2021, arXiv 2107.03374, equation 1)

    In whole numbers up to the last division, so correctly rounded. Raises ConfigError unless 0 <= c <= n and 1 <= k <= n.
    """
    _check_k("pass@", num_attempts, k, num_solved=num_solved)
    subsets = math.comb(num_attempts, k)
    return (subsets - math.comb(num_attempts - num_solved, k)) / subsets


def pass_hat_k(num_attempts: int, num_solved: int, k: int) -> float:
    """Unbiased probability that all of `k` attempts solve the task, `num_solved` of `num_attempts` having done so.

        pass^k = C(c, k) / C(n, k)      (Yao et al. 2024, arXiv 2406.12045, section 4)

    Rounded and refused as `pass_at_k`.
    """
    _check_k("pass^", num_attempts, k, num_solved=num_solved)
    return math.comb(num_solved, k) / math.comb(num_attempts, k)


def best_at_k(rewards: Sequence[float], k: int) -> float:
    """Unbiased expectation of the highest reward among `k` attempts of one task.

        best@k = sum over i of r_i C(i - 1, k - 1) / C(n, k),   r_1 <= ... <= r_n: attempt i is the best of its subset

    With rewards of 0 and 1 it is pass@k. Raises ConfigError unless 1 <= k <= n.
    """
    _check_k("best@", len(rewards), k)
    subsets = math.comb(len(rewards), k)
    return math.fsum(reward * (math.comb(below, k - 1) / subsets) for below, reward in enumerate(sorted(rewards)))


def cons_at_k(answers: Sequence[Hashable | None], rewards: Sequence[float], k: int) -> float:
    """Unbiased expectation of the reward of the answer that most of `k` attempts of one task give (majority vote, Wang et al. 2022,
    arXiv 2203.11171).

    Attempts without an answer (None) do not vote; answers with as many votes share the win; without any vote the reward is 0. An
    answer's reward is the mean of its attempts'. All subsets of `k` count, and none is enumerated: each answer's chance to win with
    j votes is a coefficient of the product of the others' generating functions. Raises ConfigError unless 1 <= k <= n.
    """
    _check_k("cons@", len(rewards), k)
    earned: dict[Hashable, list[float]] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            earned.setdefault(answer, []).append(reward)
    silent = len(rewards) - sum(map(len, earned.values()))
    sizes = Counter(map(len, earned.values()))
    chances = {size: float(_won_subsets(size, sizes - Counter([size]), silent, k) / math.comb(len(rewards), k)) for size in sizes}
    return math.fsum(chances[len(one)] * task_mean(one) for one in earned.values())


def mean_over_tasks(values: Sequence[float]) -> Estimate:
    """The mean of one value a task, with the interval of `mean_reward`. Raises ConfigError when there is none."""
    if not values:
        raise ConfigError("no task has a value; an estimate needs at least one")
    return _estimate(values)


def task_mean(rewards: Sequence[float]) -> float:
    """The mean of one task's rewards, summed exactly: a hundred attempts with one reward have just that reward as mean."""
    return statistics.mean(map(float, rewards))


def student_t_p_value(t: float, dof: float) -> float:
    """Probability that |T| >= |t| for Student's t with `dof` degrees of freedom.

    I_x(dof/2, 1/2),   x = dof / (dof + t^2)      (Abramowitz and Stegun, equation 26.5.27)
    """
    return _incomplete_beta(dof / (dof + t * t), dof / 2, 0.5)


def student_t_quantile(probability: float, dof: float) -> float:
    """The t that Student's T with `dof` degrees of freedom stays below with `probability`, 0 < probability < 1; by bisection.

    At probability 0.975 within 1e-9 of tables for 1 to 100 000 degrees of freedom.
    """
    if probability < 0.5:
        return -student_t_quantile(1 - probability, dof)
    two_sided = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while student_t_p_value(high, dof) > two_sided:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if student_t_p_value(middle, dof) > two_sided:
            low = middle
        else:
            high = middle
    return low


def _check_k(name: str, num_attempts: int, k: int, *, num_solved: int = 0) -> None:
    if not (0 <= num_solved <= num_attempts and 1 <= k <= num_attempts):
        raise ConfigError(
            f"{name}{k} with {num_solved} of {num_attempts} attempts solved; needs 0 <= solved <= attempts and 1 <= k <= attempts"
        )


def _won_subsets(size: int, others: Mapping[int, int], silent: int, k: int) -> Fraction:
    """In how many subsets of `k` attempts an answer of `size` attempts wins, ties shared, against so many others of each size."""
    won = Fraction(0)
    for votes in range(1, min(size, k) + 1):
        room = k - votes
        ways = {(drawn, 0): math.comb(silent, drawn) for drawn in range(min(silent, room) + 1)}  # by attempts and ties so far
        for other, number in others.items():
            outvoted = [(drawn, 0, math.comb(other, drawn)) for drawn in range(min(votes, other + 1))]
            tied = [(votes, 1, math.comb(other, votes))] if other >= votes else []
            for _ in range(number):
                grown: dict[tuple[int, int], int] = {}
                for (before, ties), count in ways.items():
                    for drawn, tie, choices in (*outvoted, *tied):
                        if before + drawn <= room:
                            place = before + drawn, ties + tie
                            grown[place] = grown.get(place, 0) + count * choices
                ways = grown
        shared = sum((Fraction(count, ties + 1) for (drawn, ties), count in ways.items() if drawn == room), Fraction(0))
        won += math.comb(size, votes) * shared
    return won


def _task_means(rewards_by_task: RewardsByTask[Task]) -> dict[Task, float]:
    if not rewards_by_task:
        raise ConfigError("no task has a reward; an estimate needs at least one")
    for task, rewards in rewards_by_task.items():
        if not rewards or not all(map(math.isfinite, rewards)):
            raise ConfigError(f"task {task!r} has rewards {list(rewards)}; expected at least one, and finite numbers only")
    return {task: task_mean(rewards) for task, rewards in rewards_by_task.items()}


def _estimate(values: Sequence[float], *, test: bool = False) -> Estimate:
    """Mean, Student-t interval and, with `test`, the two-sided p-value of the one value that each task gives."""
    mean, num_tasks = statistics.mean(values), len(values)
    if num_tasks == 1:
        return Estimate(mean=mean, low=-math.inf, high=math.inf, num_tasks=1)
    dof = num_tasks - 1
    standard_error = statistics.stdev(values) / math.sqrt(num_tasks)
    half_width = student_t_quantile((1 + CONFIDENCE) / 2, dof) * standard_error
    p_value = _t_test(mean, standard_error, dof) if test else None
    return Estimate(mean=mean, low=mean - half_width, high=mean + half_width, num_tasks=num_tasks, p_value=p_value)


def _t_test(mean: float, standard_error: float, dof: int) -> float:
    if standard_error == 0:
        return 0.0 if mean else 1.0
    return student_t_p_value(mean / standard_error, dof)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1.

    Continued fraction of Abramowitz and Stegun, equation 26.5.8, by the modified Lentz method (Numerical Recipes, 3rd
    edition, sections 5.2 and 6.4), on the side where it converges fast: I_x(a, b) = 1 - I_{1-x}(b, a).
    """
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    fraction, numerator, denominator, ratio, m = 1.0, 1.0, 0.0, 0.0, 0
    while abs(ratio - 1) > 1e-15:
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        ratio = 1.0
        for term in (odd, even):
            numerator = 1 + term / numerator
            denominator = 1 / (1 + term * denominator)
            ratio *= numerator * denominator
        fraction *= ratio
    return math.exp(log_front) / (a * fraction)
