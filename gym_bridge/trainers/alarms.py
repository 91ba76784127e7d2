"""Alarms: numbers of a training that tell of a known way to fail. They stop nothing."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gym_bridge.io.metrics import MetricsWriter
from gym_bridge.schemas.settings import AlarmSettings
from gym_bridge.trainers.best import PREFIX

log = logging.getLogger(__name__)

LAST_BATCHES = 5
"""Batches whose groups without a signal are looked at together."""
FIRST_STEPS = 5
"""Steps whose mean length of completions, and whose spread of rewards, later ones are compared with."""


class Alarms:
    """Looks at the metrics of each step and of each validation, in the order in which they come.

    Read are `entropy`, `kl`, `gap`, `completion_tokens`, `reward`, `reward_std`, and the counts of groups and rollouts of
    steps, and `validation/NAME/reward`.
    """

    def __init__(self, settings: AlarmSettings):
        self._settings = settings
        self._on: set[str] = set()
        self._first_lengths: list[float] = []
        self._without_signal: list[float] = []
        self._first_spreads: list[float] = []
        self._last_spreads: list[float] = []
        self._trend = _Trend()

    def check(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """`alarm/NAME`: 1.0 for what is wrong with these metrics; a warning is logged when an alarm begins.

        An alarm ends with the first metrics that are in order again.
        """
        found: dict[str, float] = {}
        for name, warning in self.looked_at(metrics):
            if warning is None:
                self._on.discard(name)
                continue
            found[f"alarm/{name}"] = 1.0
            if name not in self._on:
                log.warning("%s", warning)
                self._on.add(name)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` continues."""
        lists = {
            "first_lengths": list(self._first_lengths),
            "without_signal": list(self._without_signal),
            "first_spreads": list(self._first_spreads),
            "last_spreads": list(self._last_spreads),
        }
        return {"on": sorted(self._on), **lists, "trend": asdict(self._trend)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the metrics of `state`."""
        self._on, self._first_lengths = set(state["on"]), list(state["first_lengths"])
        self._without_signal = list(state.get("without_signal", []))
        self._first_spreads, self._last_spreads = list(state.get("first_spreads", [])), list(state.get("last_spreads", []))
        self._trend = _Trend(**state["trend"])

    def looked_at(self, metrics: Mapping[str, float | None]) -> Iterator[tuple[str, str | None]]:
        """Each alarm that these metrics decide, with its warning where something is wrong. What `check` does without a word."""
        given = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        yield from self._of_samples(given)
        yield from self._of_batch(given)
        if self._settings.heldout_patience is not None:
            yield from self._held_out(given, self._settings.heldout_patience)

    def _of_samples(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str | None]]:
        limits, entropy, kl, gap = self._settings, metrics.get("entropy"), metrics.get("kl"), metrics.get("gap")
        if limits.min_entropy is not None and entropy is not None:
            yield "entropy", _entropy(entropy, limits.min_entropy)
        if limits.max_kl is not None and kl is not None:
            yield "kl", _kl(kl, limits.max_kl)
        on_policy = metrics.get("staleness_max") == 0  # told with the first update on a batch; later ones have moved on themselves
        if limits.max_gap is not None and gap is not None and on_policy:
            yield "gap", _gap(gap, limits.max_gap)
        if limits.min_length_ratio is not None and "completion_tokens" in metrics:
            yield "length", self._length(metrics["completion_tokens"], limits.min_length_ratio)

    def _of_batch(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str | None]]:
        limits, groups, rollouts = self._settings, metrics.get("num_groups"), metrics.get("num_rollouts")
        if limits.max_without_signal is not None and groups:
            share = metrics.get("num_groups_without_signal", 0) / groups
            self._without_signal = [*self._without_signal, share][-LAST_BATCHES:]
            yield "signal", _signal(self._without_signal, limits.max_without_signal)
        if limits.min_spread_ratio is not None and "reward" in metrics and "reward_std" in metrics:
            yield "spread", self._spread(metrics["reward"], metrics["reward_std"], limits.min_spread_ratio)
        if limits.max_failed is not None and rollouts:
            yield "failures", _failures(metrics.get("num_failed", 0) / rollouts, limits.max_failed)

    def _length(self, tokens: float, least: float) -> str | None:
        if len(self._first_lengths) < FIRST_STEPS:
            self._first_lengths.append(tokens)
            return None
        first = math.fsum(self._first_lengths) / FIRST_STEPS
        if tokens >= least * first:
            return None
        return (
            f"completions have collapsed: {tokens:.4g} tokens on average, {tokens / first:.2f} of the {first:.4g} of the first "
            f"{FIRST_STEPS} steps, below trainer.alarms.min_length_ratio={least:g}; look at the rollouts: an empty answer may earn "
            "as much as an honest one; try a lower policy.lr, or algorithm.beta > 0"
        )

    def _spread(self, mean: float, spread: float, least: float) -> str | None:
        """The mean reward against its spread: a policy that has found one trick for all tasks earns the same everywhere."""
        if len(self._first_spreads) < FIRST_STEPS:
            self._first_spreads.append(spread)
            return None
        self._last_spreads = [*self._last_spreads, spread][-LAST_BATCHES:]
        first = math.fsum(self._first_spreads) / FIRST_STEPS
        last = math.fsum(self._last_spreads) / len(self._last_spreads)
        if len(self._last_spreads) < LAST_BATCHES or last >= least * first:
            return None
        return (
            f"the rewards hardly differ any more: a deviation of {last:.3g} over the last {LAST_BATCHES} batches, "
            f"{last / first:.2f} of the {first:.3g} of the first {FIRST_STEPS}, below "
            f"trainer.alarms.min_spread_ratio={least:g}, at a mean reward of {mean:.3g}: all tasks are solved or failed, or "
            "one answer pleases the verifier everywhere; look at the rollouts (gym-bridge view), at held-out tasks, and take tasks "
            "that are solved sometimes"
        )

    def _held_out(self, metrics: Mapping[str, float], patience: int) -> Iterator[tuple[str, str | None]]:
        if "reward" in metrics:
            self._trend.trained(metrics["reward"])
        ends = (PREFIX, "/reward")
        sets = {name[len(ends[0]) : -len(ends[1])]: name for name in metrics if name.startswith(ends[0]) and name.endswith(ends[1])}
        if not sets:
            return
        self._trend.validated({name: metrics[metric] for name, metric in sets.items()})
        for name in sets:
            times = self._trend.times[name]
            yield (
                f"held_out/{name}",
                None
                if times < patience
                else (
                    f"the training reward rose while that of {PREFIX}{name} fell, {times} validations in a row, to "
                    f"{metrics[sets[name]]:.4g}: the policy learns the tasks by heart, or to please their verifier; take the best "
                    "checkpoint (trainer.keep_best), more tasks, a lower policy.lr or algorithm.beta > 0"
                ),
            )


class AlarmedMetrics:
    """A `MetricsWriter` that writes alarms beside the numbers that raised them."""

    def __init__(self, writer: MetricsWriter, alarms: Alarms):
        self._writer, self._alarms = writer, alarms

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` and their alarms at `step`."""
        self._writer.write(step, {**metrics, **self._alarms.check(metrics)})


@dataclass(slots=True)
class _Trend:
    """How the rewards of training and of held-out sets moved between validations."""

    rewards: list[float] = field(default_factory=list)
    """Of the steps since the last validation."""
    training: float | None = None
    """The mean reward of the steps between the last two validations."""
    held_out: dict[str, float] = field(default_factory=dict)
    """What the last validation of each set found."""
    times: dict[str, int] = field(default_factory=dict)
    """For each set the validations in a row in which training rose and it fell."""

    def trained(self, reward: float) -> None:
        """A step had this mean reward."""
        self.rewards.append(reward)

    def validated(self, found: Mapping[str, float]) -> None:
        """A validation found these rewards; one without a step since the last tells nothing of training."""
        training = math.fsum(self.rewards) / len(self.rewards) if self.rewards else None
        rose = training is not None and self.training is not None and training > self.training
        for name, reward in found.items():
            parted = rose and name in self.held_out and reward < self.held_out[name]
            self.times[name] = self.times.get(name, 0) + 1 if parted else 0
        self.held_out |= found
        if training is not None:
            self.training, self.rewards = training, []


def _entropy(entropy: float, least: float) -> str | None:
    if entropy >= least:
        return None
    return (
        f"the policy's entropy has collapsed: {entropy:.3g} nats a token, below trainer.alarms.min_entropy={least:g}: it hardly "
        "tries anything new; try a larger algorithm.clip_high, algorithm.entropy_bonus > 0 or a lower policy.lr"
    )


def _kl(kl: float, most: float) -> str | None:
    if kl <= most:
        return None
    return (
        f"the policy has drifted from the reference: a KL of {kl:.3g} nats a token, above trainer.alarms.max_kl={most:g}; "
        "try a larger algorithm.beta or a lower policy.lr"
    )


def _gap(gap: float, most: float) -> str | None:
    if gap <= most:
        return None
    return (
        f"sampler and trainer disagree: a mean exp |difference of log-probs| of {gap:.4g}, above trainer.alarms.max_gap={most:g}; "
        "try policy.compute_dtype=float32 and the same in the sampler, a smaller overlap.max_staleness, or "
        "algorithm.old_logprobs=trainer with an algorithm.correction"
    )


def _signal(shares: list[float], most: float) -> str | None:
    share = math.fsum(shares) / len(shares)
    if len(shares) < LAST_BATCHES or share <= most:
        return None
    return (
        f"{share:.0%} of the groups of the last {LAST_BATCHES} batches had no signal, above "
        f"trainer.alarms.max_without_signal={most:g}: all their rollouts earned the same; take tasks that the policy solves "
        "sometimes (data.curriculum, or gym-bridge transform --to tasks --where-group '0 < pass_rate < 1'), a larger "
        "algorithm.group_size, or algorithm.dynamic_sampling=true"
    )


def _failures(share: float, most: float) -> str | None:
    if share <= most:
        return None
    return (
        f"{share:.0%} of a batch's rollouts failed, above trainer.alarms.max_failed={most:g}; num_failed/TYPE in metrics.jsonl "
        "tells of what, rollouts_failures.jsonl with which messages; gym-bridge doctor plays one rollout step by step"
    )
