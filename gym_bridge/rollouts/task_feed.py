"""Tasks that are handed over while others are played."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

from gym_bridge.rollouts.plan import PlannedRollout, plan
from gym_bridge.schemas.rollouts import Row


class TaskFeed:
    """A queue of tasks for one collector, filled in the collector's event loop; it never ends, the play over it is closed.

    A task comes with its `_ng_task_index` and the `_ng_rollout_index` of its first rollout, which nobody has had before.
    """

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        """Called when there is something new; the collector sets it."""
        self._tasks: deque[Row] = deque()

    def put(self, tasks: list[Row]) -> None:
        """Hand over further tasks."""
        self._tasks.extend(tasks)
        self.wake()

    def __iter__(self) -> Iterator[Row]:
        """The tasks that are here now."""
        while self._tasks:
            yield self._tasks.popleft()

    def planned(self, group_size: int) -> Iterator[PlannedRollout | None]:
        """The rollouts of every task, as groups numbered one after the other; None while there is none to give."""
        numbers = count()
        while True:
            if not self._tasks:
                yield None
                continue
            number = next(numbers)
            for one in plan([self._tasks.popleft()], num_repeats=group_size):
                yield replace(one, group=number)
