"""GRPO: the policy plays groups of rollouts, and each sampled token is pushed by its rollout's advantage within the group.

How this departs from the paper (Shao et al. 2024, arXiv 2402.03300):
- the ratio is taken against the log-probs that the sampler reported, not against a second forward pass of the trainer: one
  ratio corrects both the age of the sample and the gap between sampler and trainer;
- the loss is the mean over all sampled tokens of the step (DAPO), not the mean of each rollout's mean;
- there is no KL term and no reference model;
- each batch of rollouts trains once.
"""

import asyncio
import itertools
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gym_bridge.algorithms.advantages import group_advantages
from gym_bridge.algorithms.losses import clipped_surrogate
from gym_bridge.errors import PolicyError
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.policy.packing import plan_microbatches
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Group, Row
from gym_bridge.schemas.seams import Collector, Loss, LossFn, TrainedTokens, TrainStep
from gym_bridge.schemas.settings import GRPOAlgorithm, GRPOSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.trajectory import build_trajectory, training_sequences

MAX_EMPTY_STEPS = 20  # steps in a row without any group that has a signal


def grpo_loss(settings: GRPOAlgorithm) -> LossFn:
    """The clipped surrogate with the step's clip bounds; reports ratio, clipping and the sampler's gap.

    `gap` is mean exp |logprobs - rollout_logprobs|, 1 when sampler and trainer agree.
    """

    def loss(logprobs: Tensor, columns: TrainedTokens) -> Loss:
        if torch.isnan(columns.old_logprobs).any():
            raise PolicyError("a sampled token has no log-prob; the sampler must report one for every token")
        value, clipped = clipped_surrogate(
            logprobs,
            columns.old_logprobs,
            columns.advantages,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            num_tokens=columns.num_tokens,
        )
        with torch.no_grad():
            difference = logprobs - columns.old_logprobs
            metrics = {
                "gap": float(difference.abs().exp().sum() / columns.num_tokens),
                "ratio": float(difference.exp().sum() / columns.num_tokens),
                "clip_fraction": float(clipped.sum() / columns.num_tokens),
            }
        return Loss(value, metrics)

    return loss


class GRPOSource:
    """Steps made of rollouts that the policy plays as it learns; the collector's event loop runs in a thread of its own.

    Tasks come in passes, each in its own seeded order. A group without spread in its rewards has advantages of 0 and is not
    trained on; failed rollouts leave their group.
    """

    def __init__(self, tasks: list[Row], collector: Collector, log: RolloutLog, settings: GRPOSettings):
        self.tasks, self.collector, self.log, self.settings = tasks, collector, log, settings
        self._position = 0  # tasks taken
        self._trained = 0  # tasks taken up to the last update
        self._runner = _LoopThread()

    def next(self) -> TrainStep | None:
        """Play the next tasks until some group has a signal; the metrics tell of every group played.

        Raises PolicyError when no group has a signal for a long time, or when every rollout of a round failed.
        """
        played: list[Group] = []
        for _ in range(MAX_EMPTY_STEPS):
            groups = self._runner.run(self._collect(self._next_tasks()))
            played += groups
            if not any(group.verified for group in groups):
                failure = groups[0].rollouts[0].failure
                raise PolicyError(
                    f"every rollout of a step failed, the first one with: {failure.message if failure else 'nothing'}"
                )
            sequences = [one for group in groups for one in self._sequences(group)]
            if sequences:
                microbatches = plan_microbatches(
                    [(one,) for one in sequences],
                    max_tokens=self.settings.policy.microbatch_tokens,
                    share_prefixes=self.settings.policy.prefix_sharing,
                )
                return TrainStep(microbatches=microbatches, metrics=group_metrics(played))
        raise PolicyError(
            f"{MAX_EMPTY_STEPS} steps of {self.settings.algorithm.tasks_per_step} groups had no spread in their rewards; "
            "the tasks are too hard or too easy for this policy"
        )

    def stepped(self, version: int) -> None:
        """The step was taken."""
        self._trained = self._position

    def state_dict(self) -> dict[str, Any]:
        """Tasks taken up to the last update; those of a step that was never finished are played again."""
        return {"position": self._trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last task of `state`."""
        self._position = self._trained = int(state["position"])

    def close(self) -> None:
        """End the collector and its thread; rollouts taken so far are on disk. Closing again does nothing."""
        self._runner.close(self.collector.close)
        self.log.close()

    def _next_tasks(self) -> list[Row]:
        count = self.settings.algorithm.tasks_per_step
        chosen = list(itertools.islice(self._order(self._position), count))
        self._position += count
        rows: list[Row] = []
        seen: Counter[int] = Counter()  # a small task set may bring a task twice in one step
        for row in chosen:
            first = self.log.next_rollout_index(row[TASK_INDEX]) + seen[row[TASK_INDEX]] * self.settings.algorithm.group_size
            rows.append({**row, ROLLOUT_INDEX: first})
            seen[row[TASK_INDEX]] += 1
        return rows

    def _order(self, start: int) -> Iterator[Row]:
        for position in itertools.count(start):
            epoch, place = divmod(position, len(self.tasks))
            order = list(range(len(self.tasks)))
            random.Random(f"{self.settings.trainer.seed}-{epoch}").shuffle(order)
            yield self.tasks[order[place]]

    async def _collect(self, tasks: list[Row]) -> list[Group]:
        groups: list[Group] = []
        async for group in self.collector.groups(tasks, group_size=self.settings.algorithm.group_size):
            groups.append(group)
            self.log.append_group((*group.retried, *group.rollouts))
        self.log.sync()  # before the update that trains on them
        return sorted(groups, key=lambda one: one.rollouts[0].key)

    def _sequences(self, group: Group) -> list[TrainingSequence]:
        members = group.verified
        advantages = group_advantages(
            [float(one.row["reward"]) for one in members], scale_by_std=self.settings.algorithm.scale == "std"
        )
        if not any(advantages):
            return []
        return [
            sequence
            for rollout, advantage in zip(members, advantages, strict=True)
            for sequence in training_sequences(build_trajectory(rollout.key, rollout.turns), advantage=advantage)
        ]


def group_metrics(groups: list[Group]) -> dict[str, float]:
    """What a step's rollouts were: rewards, spread, lengths, failures by type."""
    rollouts = [one for group in groups for one in group.rollouts]
    verified = [one for one in rollouts if one.failure is None]
    rewards = [float(one.row["reward"]) for one in verified]
    lengths = [sum(len(turn.completion_ids) for turn in one.turns) for one in verified]
    failed = Counter(str(one.failure.type) for one in rollouts if one.failure is not None)
    flat = [group for group in groups if len({one.reward for one in group.verified}) < 2]
    means = {
        "reward": rewards,
        "completion_tokens": lengths,
        "num_turns": [one.row["gym_bridge"]["num_turns"] for one in verified],
        "truncated": [float(one.truncated) for one in verified],
    }
    metrics = {name: float(np.mean(values)) for name, values in means.items() if values}
    return {
        **metrics,
        "reward_std": float(np.std(rewards)) if rewards else 0.0,
        "num_rollouts": len(rollouts),
        "num_groups_without_signal": len(flat),
        "num_failed": sum(failed.values()),
        **{f"num_failed/{name}": count for name, count in failed.items()},
    }


class _LoopThread:
    """An event loop in a thread of its own, for coroutines that a synchronous loop waits for."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="collector", daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """The coroutine's result; Ctrl-C cancels it first."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Callable[[], Awaitable[None]]) -> None:
        """Cancel what runs, do `last` and end the thread; closing again does nothing."""
        if self._loop.is_closed():
            return

        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await last()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
