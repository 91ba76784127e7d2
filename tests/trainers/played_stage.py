"""A collector whose rollouts end as a test says, when it says so, and streams over it with a real log."""

import asyncio
import threading
from contextlib import contextmanager

from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.schemas.rollouts import Failure, FailureType, Group, Rollout, RolloutKey
from gym_bridge.schemas.settings import GRPOAlgorithm, OverlapSettings
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.trainers.loop_thread import LoopThread
from gym_bridge.trainers.online_groups import OnlineGroups
from gym_bridge.trainers.task_stream import TaskSet, TaskStream


def rollout(key, reward, *, length=1, version=0, truncated=False, num_turns=1, failure=None, prompt=None):
    """A rollout of one turn: prompt 5 and the task's number, completion the rollout's number over and over."""
    row = {"_ng_task_index": key.task_index, "_ng_rollout_index": key.rollout_index}
    if failure is not None:
        row["_ng_failure_class"] = str(failure)
        row["gym_bridge"] = {"failure": {"type": str(failure), "message": "it failed", "status": None, "terminal": False}}
        return Rollout(key=key, attempt=0, row=row, failure=Failure(type=failure, message="it failed"))
    turn = TurnTokens(
        prompt_ids=prompt or (5, 10 + key.task_index),
        completion_ids=(50 + key.rollout_index % 100,) * length,
        logprobs=(-1.0,) * length,
        policy_version=version,
        starts_segment=True,
    )
    row |= {"reward": reward, "gym_bridge": {"num_turns": num_turns, "truncated": truncated}}
    return Rollout(key=key, attempt=0, row=row, turns=(turn,))


class Scripted:
    """Rollouts end as `outcome(task_index, member)` says: a reward, or a type of failure. Tasks in `held` wait for `release`."""

    def __init__(self, outcome, *, held=(), tried_twice=False):
        self.outcome, self.held = outcome, {task: threading.Event() for task in held}
        self.tried_twice = tried_twice
        self.keys = []
        self.asked = []
        """Tasks as they were handed over, in order."""
        self.version = 0
        """Of the tokens sampled from now on."""

    def release(self, task):
        self.held[task].set()

    async def groups(self, tasks, *, group_size, told=None):
        more = asyncio.Event()
        tasks.wake = more.set
        more.set()
        playing = set()
        try:
            while True:
                for row in tasks:
                    self.asked.append(row["_ng_task_index"])
                    playing.add(asyncio.create_task(self.play(row, group_size, told)))
                waking = asyncio.create_task(more.wait())
                done, _ = await asyncio.wait([*playing, waking], return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
                more.clear()
                for one in done & playing:
                    playing.remove(one)
                    yield one.result()
        finally:
            for one in playing:
                one.cancel()

    async def play(self, row, group_size, told):
        task, version = row["_ng_task_index"], self.version
        members = []
        for member in range(group_size):
            if member == group_size - 1:  # the last member waits, the others have ended before
                while task in self.held and not self.held[task].is_set():
                    await asyncio.sleep(0.001)
            key = RolloutKey(task, row["_ng_rollout_index"] + member)
            found = self.outcome(task, member)
            failure = found if isinstance(found, FailureType) else None
            members.append(rollout(key, found, failure=failure, version=version))
            self.keys.append(key)
            if self.tried_twice:
                told((rollout(key, None, failure=FailureType.TIMEOUT),), 0)
            told((members[-1],), 1)
        return Group(task_index=task, rollouts=tuple(members))

    async def close(self):
        pass


@contextmanager
def playing(
    directory,
    outcome,
    *,
    num_tasks=4,
    tasks_per_step=2,
    max_staleness=0,
    in_flight_updates=False,
    held=(),
    tried_twice=False,
    state=None,
    **more,
):
    """A stream over `num_tasks` tasks in the order of their seed, its collector, and its log in `directory`."""
    collector = Scripted(outcome, held=held, tried_twice=tried_twice)
    tasks = [{"_ng_task_index": index} for index in range(num_tasks)]
    algorithm = GRPOAlgorithm(tasks_per_step=tasks_per_step, group_size=2)
    overlap = OverlapSettings(max_staleness=max_staleness, in_flight_updates=in_flight_updates)
    thread, log = LoopThread(), RolloutLog(directory / "rollouts.jsonl", identity={})
    stream = OnlineGroups(
        TaskStream([TaskSet(name="game", tasks=tasks)], seed=0),
        collector,
        log,
        algorithm=algorithm,
        overlap=overlap,
        thread=thread,
        **more,
    )
    try:
        if state is not None:
            stream.load_state_dict(state)
        yield stream, collector
    finally:
        stream.close()
        thread.close()
        log.close()
