"""Which task is played next: passes over sets of tasks, sets mixed by weight, tasks that teach nothing left to rest."""

import math
import random
from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.settings import CurriculumSettings
from gym_bridge.trainers.task_pools import TaskPools


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """The tasks of one environment."""

    name: str
    """Of the environment, in metrics and checkpoints."""
    weight: float = 1.0
    """Share of the tasks that come from this set, beside the weights of the others."""
    tasks: Sequence[Row]
    """Each with its `_ng_task_index`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A task that was taken to be played by one group."""

    row: Row
    environment: str
    """Name of its set."""
    number: int
    """Draws before it, over the whole run. A draw that comes again after a kill keeps its number."""
    position: int
    """Of the task in its set."""
    pass_number: int
    """Which pass over its set it belongs to, from 0."""

    def state(self) -> dict[str, Any]:
        """Plain values from which `TaskStream.draw_of` makes it again."""
        return {"environment": self.environment, "number": self.number, "position": self.position, "pass": self.pass_number}


class TaskStream:
    """Tasks without end.

    A set is taken in passes, each in its own seeded order. Several sets are mixed so that after n draws each has had its share of
    n to within less than one draw. With a curriculum, a task whose last group was solved too often or too seldom rests for some
    passes; where all tasks of a set rest in a pass, that pass has one draw, of the task that is to wake first.
    """

    def __init__(self, sets: Sequence[TaskSet], *, seed: int, curriculum: CurriculumSettings | None = None):
        """Raises ConfigError for no set, sets of one name, an empty set, or a weight that is no positive number."""
        _check(sets)
        self._sets = {one.name: one for one in sets}
        self._mixture = _Mixture([one.weight for one in sets])
        self._passes = {
            one.name: _Passes(
                len(one.tasks),
                seed=str(seed) if len(sets) == 1 else f"{seed}-{one.name}",
                pools=None if curriculum is None else TaskPools(len(one.tasks), curriculum),
            )
            for one in sets
        }
        self._again: deque[Draw] = deque()

    def next(self) -> Draw:
        """The next task; after `load_state_dict` first those whose groups never trained."""
        if self._again:
            return self._again.popleft()
        number = self._mixture.num_draws
        name = list(self._sets)[self._mixture.next()]
        position, pass_number = self._passes[name].take()
        return self._draw(name, number=number, position=position, pass_number=pass_number)

    def note(self, draw: Draw, rewards: Sequence[float]) -> None:
        """The group of `draw` was played, and its rollouts verified with `rewards`; only a curriculum wants to know."""
        pools = self._passes[draw.environment].pools
        if pools is not None:
            pools.note(draw.position, rewards, pass_number=draw.pass_number)

    def metrics(self) -> dict[str, float]:
        """With a curriculum how many tasks of all sets are in each pool, `num_tasks_POOL`, and how often one was woken early."""
        found: dict[str, float] = {}
        for passes in self._passes.values():
            for name, count in ({} if passes.pools is None else passes.pools.counts()).items():
                found[f"num_tasks_{name}"] = found.get(f"num_tasks_{name}", 0) + count
        return found

    def state_dict(self, pending: Iterable[Draw] = ()) -> dict[str, Any]:
        """Plain values from which `load_state_dict` continues; `pending` are the draws whose groups have not trained."""
        pending = sorted({one.number: one for one in (*pending, *self._again)}.values(), key=lambda one: one.number)
        return {
            "sets": {
                name: {"num_draws": count, **passes.state_dict()}
                for count, (name, passes) in zip(self._mixture.counts, self._passes.items(), strict=True)
            },
            "pending": [one.state() for one in pending],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as the stream of `state`, over the same sets. Raises ConfigError for other ones."""
        sets = state["sets"]
        if set(sets) != set(self._sets):
            raise ConfigError(
                f"the checkpoint knows the task sets {', '.join(sets)}, data.train has {', '.join(self._sets)}; "
                "go on with the same ones, or choose another trainer.output"
            )
        self._mixture.counts = [int(sets[name]["num_draws"]) for name in self._sets]
        for name, passes in self._passes.items():
            passes.load_state_dict(sets[name])
        self._again = deque(self.draw_of(one) for one in state["pending"])

    def draw_of(self, state: Mapping[str, Any]) -> Draw:
        """The draw whose `state` it is."""
        return self._draw(
            state["environment"], number=int(state["number"]), position=int(state["position"]), pass_number=int(state["pass"])
        )

    def _draw(self, name: str, *, number: int, position: int, pass_number: int) -> Draw:
        row = self._sets[name].tasks[position]
        return Draw(row=row, environment=name, number=number, position=position, pass_number=pass_number)


def _check(sets: Sequence[TaskSet]) -> None:
    if not sets:
        raise ConfigError("data.train names no file of tasks; name one at least")
    names = [one.name for one in sets]
    for one in sets:
        if names.count(one.name) > 1:
            raise ConfigError(f"data.train: two files of tasks are named {one.name!r}; give one of them another name")
        if not one.tasks:
            raise ConfigError(f"data.train: {one.name!r} has no tasks; expected one at least")
        if not (math.isfinite(one.weight) and one.weight > 0):
            raise ConfigError(f"data.train: the weight of {one.name!r} is {one.weight}; expected a positive number")


class _Mixture:
    """Which set comes next, by weight.

    With shares w_i / W, draw t (from 1) may go to a set that has had c_i < t w_i / W draws, and goes to the one of these whose
    next draw is due first: ceil((c_i + 1) W / w_i) is the last t at which it may come. This is earliest deadline first over the
    windows of Baruah et al. 1996 (Proportionate progress, Algorithmica 15), which keeps |c_i - t w_i / W| < 1. In whole numbers,
    of weights as they are written.
    """

    def __init__(self, weights: Sequence[float]):
        written = [Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*(one.denominator for one in written))
        self._weights = [int(one * scale) for one in written]
        self._total = sum(self._weights)
        self.counts = [0] * len(weights)
        """Draws of each set."""

    @property
    def num_draws(self) -> int:
        """Of all sets."""
        return sum(self.counts)

    def next(self) -> int:
        """Which set has the next draw."""
        draw = self.num_draws + 1
        ready = [i for i, weight in enumerate(self._weights) if self.counts[i] * self._total < draw * weight]
        chosen = min(ready, key=lambda i: -(-(self.counts[i] + 1) * self._total // self._weights[i]))
        self.counts[chosen] += 1
        return chosen


class _Passes:
    """Passes over `count` tasks, told by their positions; those that rest are passed over."""

    def __init__(self, count: int, *, seed: str, pools: TaskPools | None):
        self.pools = pools
        self._count, self._seed = count, seed
        self._pass, self._place = 0, 0
        self._order: tuple[int, array[int]] = (-1, array("i"))

    def take(self) -> tuple[int, int]:
        """The next task's position, and the pass that it belongs to."""
        position = self._next_awake()
        if position is None:
            self._pass, self._place = self._pass + 1, 0
            position = self._next_awake() if self.pools is None or self.pools.any_awake(self._pass) else self._woken(self.pools)
            assert position is not None, "a pass that begins with a task awake has one"
        return position, self._pass

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` continues."""
        pools = {} if self.pools is None else {"pools": self.pools.state_dict()}
        return {"pass": self._pass, "place": self._place, **pools}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last task of `state`."""
        self._pass, self._place = int(state["pass"]), int(state["place"])
        if self.pools is not None:
            self.pools.load_state_dict(state["pools"])

    def _next_awake(self) -> int | None:
        """The next position in what is left of this pass."""
        order = self._order_of_pass() if self._place < self._count else ()
        while self._place < self._count:
            position = order[self._place]
            self._place += 1
            if self.pools is None or self.pools.is_awake(position, self._pass):
                return position
        return None

    def _woken(self, pools: TaskPools) -> int:
        """The one task of a pass in which all rest."""
        self._place = self._count
        return pools.wake_first(self._pass)

    def _order_of_pass(self) -> Sequence[int]:
        if self._order[0] != self._pass:
            order = array("i", range(self._count))
            random.Random(f"{self._seed}-{self._pass}").shuffle(order)
            self._order = self._pass, order
        return self._order[1]
