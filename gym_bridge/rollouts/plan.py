"""Which rollouts are to be played: tasks as the run asks them, repeated, each known by its key."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.rollouts.models.metadata import with_seed
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, FAILURE_CLASS, ROLLOUT_INDEX, TASK_INDEX, RolloutKey, Row, agent_ref

DEFAULT_REPEATS = "_default"
LARGEST = 2**31
"""Rollout indices from here on take more room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRollout:
    """A rollout to be played."""

    key: RolloutKey
    row: Row
    group: int = 0
    """Position of the task among those planned."""
    first_attempt: int = 0
    """Attempts that an earlier run made in vain."""
    problem: str | None = None
    """Why the task cannot be played; its rollouts fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """NeMo Gym's prompt config: texts with `{field}` for the task's own fields, `{{` and `}}` for braces."""

    user: str
    system: str | None = None

    def messages(self, row: Row) -> list[dict[str, str]]:
        """The input of `row`. Raises DataError for a field that it does not have, or an input that is there already."""
        given = row.get("responses_create_params")
        if isinstance(given, dict) and given.get("input"):
            raise DataError("the task has an input of its own; a prompt template cannot be laid over it")
        texts = {"system": self.system, "user": self.user}
        try:
            return [{"role": role, "content": text.format_map(row)} for role, text in texts.items() if text is not None]
        except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise DataError(f"the prompt template asks for {error}; the task has {', '.join(row)}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What a run changes in its tasks."""

    params: Mapping[str, Any] = field(default_factory=dict)
    """Responses parameters laid over the task's own."""
    prompt: PromptTemplate | None = None
    seed_per_repeat: bool = False
    """Each repeat brings its rollout index as the endpoint's seed, in `metadata.extra_body` as NeMo Gym does."""
    agent: str | None = None
    """Who plays the tasks that name no agent."""

    def apply(self, row: Row, key: RolloutKey) -> Row:
        """The row of one rollout. Raises DataError."""
        # A row out of a failures file is a task like any other: how it ended before must not reach the verifier.
        row = {name: value for name, value in row.items() if name not in (FAILURE_CLASS, ATTEMPT_INDEX)}
        if self.agent is not None and not row.get("agent_ref"):
            row["agent_ref"] = agent_ref(self.agent)
        given = row.get("responses_create_params")
        if self.prompt is not None:
            given = {**(given if isinstance(given, dict) else {}), "input": self.prompt.messages(row)}
        if not isinstance(given, dict) or "input" not in given:
            raise DataError("the task has no responses_create_params.input")
        params = {**given, **self.params}
        if self.seed_per_repeat:
            params["metadata"] = with_seed(params.get("metadata"), key.rollout_index)
        return {**row, "responses_create_params": params, TASK_INDEX: key.task_index, ROLLOUT_INDEX: key.rollout_index}


Repeats = int | Mapping[str, int]
"""Rollouts of each task, or of each task of an agent, by its name; `_default` stands for the agents that are not named."""


def plan(tasks: Iterable[Row], *, num_repeats: Repeats, settings: TaskSettings | None = TaskSettings()) -> Iterator[PlannedRollout]:
    """The rollouts of every task, in order; without `settings` for their keys alone.

    A task without `_ng_task_index` is known by its position.

    A task that comes again gets further rollout indices: no key is planned twice. A task that cannot be played is planned with
    its problem. Raises DataError for an index that is no whole number, ConfigError for an agent without repeats.
    """
    repeats = _repeats_of(num_repeats)
    taken = _NextIndices()
    for position, row in enumerate(tasks):
        task_index, first = _index(row, TASK_INDEX, position), _index(row, ROLLOUT_INDEX, 0)
        first = max(first, taken.of(task_index))
        end = first + repeats(row)
        taken.put(task_index, end)
        for rollout_index in range(first, end):
            yield _planned(RolloutKey(task_index, rollout_index), row, settings, group=position)


class _NextIndices:
    """The first free rollout index of every task: four bytes for one of those that count up from 0, an entry for any other."""

    def __init__(self) -> None:
        self._counted = array("i")
        self._others: dict[int, int] = {}

    def of(self, task_index: int) -> int:
        """The first index that is free."""
        counted = self._counted[task_index] if 0 <= task_index < len(self._counted) else 0
        return max(counted, self._others.get(task_index, 0))

    def put(self, task_index: int, free: int) -> None:
        """Those below `free` are taken."""
        if task_index == len(self._counted) and free < LARGEST:
            self._counted.append(free)
        elif 0 <= task_index < len(self._counted) and free < LARGEST:
            self._counted[task_index] = free
        else:
            self._others[task_index] = free


def _planned(key: RolloutKey, row: Row, settings: TaskSettings | None, *, group: int) -> PlannedRollout:
    try:
        return PlannedRollout(key=key, row=row if settings is None else settings.apply(row, key), group=group)
    except DataError as error:
        numbered = {**row, TASK_INDEX: key.task_index, ROLLOUT_INDEX: key.rollout_index}
        return PlannedRollout(key=key, row=numbered, group=group, problem=str(error))


def _repeats_of(num_repeats: Repeats) -> Callable[[Row], int]:
    if isinstance(num_repeats, int):
        return lambda row: num_repeats

    def of_agent(row: Row) -> int:
        agent = row.get("agent_ref")
        name = agent.get("name") if isinstance(agent, dict) else None
        name = name if isinstance(name, str) else DEFAULT_REPEATS
        found = num_repeats.get(name, num_repeats.get(DEFAULT_REPEATS))
        if found is None:
            raise ConfigError(f"no number of repeats for agent {name!r}; name it, or {DEFAULT_REPEATS}")
        return found

    return of_agent


def _index(row: Row, name: str, default: int) -> int:
    value = row.get(name)
    if value is not None and type(value) is not int:
        raise DataError(f"{name} of a task is {value!r}; expected a whole number")
    return default if value is None else value
