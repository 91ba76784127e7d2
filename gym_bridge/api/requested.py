"""The rollouts that a run asks for: its tasks, as it plays them, as often as it wants them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import orjson
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gym_bridge.config import load_config
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.rollouts.plan import PlannedRollout, PromptTemplate, TaskSettings, plan
from gym_bridge.schemas.play_settings import PlaySettings, PromptSettings, RunSettings
from gym_bridge.schemas.rollouts import TASK_INDEX, RolloutKey, Row, agent_ref


class RequestedRollouts:
    """The rollouts that a run asks for, read from the tasks file as often as they are needed."""

    def __init__(self, settings: RunSettings, *, agent: str | None = None):
        """`agent` names who plays the tasks that name none."""
        self._settings = settings
        self._task_settings = task_settings_of(settings, agent=agent)

    def planned(self) -> Iterator[PlannedRollout]:
        """All of them, in order."""
        return self._plan(self._task_settings)

    def all_keys(self) -> Iterator[RolloutKey]:
        """Their keys. Raises DataError for a line of the file that is no task, and for an empty file."""
        return (one.key for one in self._plan(None))

    def _plan(self, task_settings: TaskSettings | None) -> Iterator[PlannedRollout]:
        rows = tasks_of(self._settings.input, self._settings.limit)
        if self._settings.agent is not None:  # the number of repeats may be by agent
            rows = (row if row.get("agent_ref") else {**row, "agent_ref": agent_ref(self._settings.agent)} for row in rows)
        return plan(rows, num_repeats=self._settings.num_repeats, settings=task_settings)

    def unfinished(self, log: RolloutLog, *, cohorts: bool = False) -> Iterator[PlannedRollout]:
        """Those that the log does not hold and that may be tried again; of a cohort all, when one is missing."""
        for _, members in groupby(self.planned(), key=lambda one: one.group if cohorts else one.key):
            cohort = list(members)
            if any(self._is_open(one, log) for one in cohort) and not any(log.is_terminal(one.key) for one in cohort):
                yield from (replace(one, first_attempt=log.num_failed_attempts(one.key)) for one in cohort)

    def _is_open(self, one: PlannedRollout, log: RolloutLog) -> bool:
        tried = log.num_failed_attempts(one.key)
        return not log.is_done(one.key) and not log.is_terminal(one.key) and tried < self._settings.max_attempts


def tasks_of(path: Path, limit: int | None = None) -> Iterator[Row]:
    """The rows of a tasks file, each with its task index: its own, or its position among the lines that are not blank.

    Raises DataError for a line that is no JSON object, or one nested too deep to be written again.
    """
    for position, (line, row) in enumerate(islice(read_jsonl(path), limit)):
        try:
            orjson.dumps(row)
        except orjson.JSONEncodeError as error:
            raise DataError(f"the task cannot be written again: {error}", path=path, line=line) from error
        yield {**row, TASK_INDEX: row.get(TASK_INDEX, position)}


def task_settings_of(settings: PlaySettings, *, agent: str | None = None) -> TaskSettings:
    """What a run changes in its tasks. Raises ConfigError."""
    given = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_output_tokens": settings.max_output_tokens,
    }
    params = {name: value for name, value in given.items() if value is not None}
    prompt = None
    if settings.prompt_config is not None:
        texts = load_config(PromptSettings, files=[settings.prompt_config])
        prompt = PromptTemplate(user=texts.user, system=texts.system)
    params |= _params(settings.params)
    return TaskSettings(params=params, prompt=prompt, seed_per_repeat=settings.seed_per_repeat, agent=agent)


def _params(given: Iterable[str]) -> dict[str, Any]:
    """`responses_create_params.KEY=VALUE`, the prefix may be left out."""
    lines = [one.removeprefix("responses_create_params.") for one in given]
    for line in lines:
        if "=" not in line.lstrip("="):
            raise ConfigError(f"--params {line!r}: expected responses_create_params.KEY=VALUE")
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist(lines), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"--params: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or "responses_create_params" in found:
        raise ConfigError("--params: expected responses_create_params.KEY=VALUE")
    return {str(name): value for name, value in found.items()}
