"""Several servers as one: their tools together, and one reward of theirs."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import Field, ValidationError

from gym_bridge.config import StrictModel, validate
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.resource_servers.base import KnownAnswers, ResourceServer, Response, Split, Verdict, VerificationFailed
from gym_bridge.resource_servers.combine.shaping import Shaping, shaped
from gym_bridge.resource_servers.combine.tasks import CombinedTask, combined_task
from gym_bridge.resource_servers.registry import load_server, make_server, make_tasks, written_answers
from gym_bridge.resource_servers.tools import Tool
from gym_bridge.schemas.rollouts import Row

How = Literal["sum", "gate", "product"]


class Part(StrictModel):
    """One of the servers."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    """What it is called in the row's `reward_components`."""
    server: str
    """Name, file or dotted path of the server, or the YAML file that sets it up."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its settings, where no YAML file has them."""
    weight: float = 1.0
    """Factor of its reward in a sum."""


class Settings(StrictModel):
    """Which servers, and how their rewards become one."""

    parts: list[Part] = Field(min_length=1, max_length=32)
    """The servers, which all read the same rows and verify the same rollouts."""
    how: How = "sum"
    """sum: weighted; product: of all rewards, without weights; gate: the weighted sum of all parts but the first where the
    first one's reward reaches `gate`, else 0."""
    gate: float = 1.0
    """With how=gate, the reward that opens."""
    tasks_from: str | None = None
    """Name of the part that makes the tasks; the first when left out."""
    shaping: Shaping = Shaping()
    """What is done to the combined reward."""

    @property
    def maker(self) -> Part:
        """The part that makes the tasks."""
        return next(part for part in self.parts if self.tasks_from in (None, part.name))


@dataclass(frozen=True, slots=True)
class Running:
    """A part and the server that it names."""

    part: Part
    server: ResourceServer


DEADLINE_MARGIN_S = 5.0
"""Seconds by which the deadline of all is later than those of its parts, which tell who was late."""
Sessions = dict[str, Any]
"""Each part's session by its name."""


class CombineServer(ResourceServer[CombinedTask, Sessions]):
    """Opens other servers in this process. All of them verify every rollout, so that every component stands in the row."""

    Task = CombinedTask
    Settings = Settings

    def __init__(self, settings: Settings | None = None, *, shuffle_rewards: bool = False):
        super().__init__(settings, shuffle_rewards=shuffle_rewards)
        self._given = cast(Settings, self.settings)
        self._parts = [Running(part, _made(part)) for part in self._given.parts]
        _check(self._given)
        self.Task = combined_task({one.part.name: one.server.Task for one in self._parts})
        self._tools = self._gathered_tools()
        if any(one.server.reverify_mode == "unsupported" for one in self._parts):
            self.reverify_mode = "unsupported"
        servers = [one.server for one in self._parts]
        self.max_sessions = min(one.max_sessions for one in servers)
        self.session_ttl_s = min(one.session_ttl_s for one in servers)
        self.deadline_s = DEADLINE_MARGIN_S + sum(one.deadline_s for one in servers)  # they are seeded one after the other
        self._stack = AsyncExitStack()

    def tool_table(self) -> dict[str, Tool]:
        """The tools of all parts."""
        return self._tools

    async def start(self) -> None:
        """Start the parts."""
        for one in self._parts:
            self._stack.push_async_callback(one.server.stop)
            await one.server.start()

    async def stop(self) -> None:
        """Stop the parts that were started, each even where another fails to."""
        await self._stack.aclose()

    async def seed(self, task: CombinedTask) -> Sessions:
        """A session of each part."""
        sessions: Sessions = {}
        try:
            for one in self._parts:
                sessions[one.part.name] = await one.server.seed(task.of(one.part.name))
        except BaseException:
            self.end(sessions)
            raise
        return sessions

    def end(self, session: Sessions) -> None:
        """End the session of each part."""
        for one in self._parts:
            if one.part.name in session:
                one.server.end(session[one.part.name])

    async def verify(self, task: CombinedTask, response: Response, session: Sessions | None) -> Verdict:
        """The combined and shaped reward. The row gains `reward_components`, `reward_shaping` and each part's own fields.

        Raises what a part raises: where one of them cannot tell, there is no reward.
        """
        verdicts = await asyncio.gather(*(_verdict(one, task, response, session) for one in self._parts))
        rewards = [float(verdict.reward) for verdict in verdicts]
        combined = combine(rewards, [one.part.weight for one in self._parts], how=self._given.how, gate=self._given.gate)
        reward, terms = shaped(combined, response, self._given.shaping)
        names = [one.part.name for one in self._parts]
        fields: dict[str, Any] = {
            "reward_components": dict(zip(names, rewards, strict=True)),
            "reward_shaping": {"combined": combined, **terms},
            "verdicts": {name: verdict.fields for name, verdict in zip(names, verdicts, strict=True)},
        }
        if not math.isfinite(reward):
            raise VerificationFailed(f"the combined reward is {reward}; its components are {rewards}")
        return Verdict(reward=reward, fields=fields)

    @classmethod
    def tasks_for(cls, settings: StrictModel, *, num_tasks: int, seed: int, split: Split, **knobs: Any) -> Iterator[Row]:
        """Those of the part that `tasks_from` names, each checked to be a task of every part."""
        assert isinstance(settings, Settings)
        server = cls(settings)
        maker = settings.maker
        if maker.settings:
            kind = load_server(maker.server)
            given = validate(kind.Settings, maker.settings)
            rows = kind.tasks_for(given, num_tasks=num_tasks, seed=seed, split=split, **knobs)
        else:
            rows = make_tasks(maker.server, num_tasks=num_tasks, seed=seed, split=split, **knobs)
        return (server._read_by_all(row, maker) for row in rows)

    @classmethod
    def known_answers_for(cls, settings: StrictModel, row: Row) -> KnownAnswers:
        """Those of the part that makes the tasks."""
        assert isinstance(settings, Settings)
        return written_answers(settings.maker.server, row)

    @classmethod
    def make_tasks(cls, knobs: Any, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """None: the YAML file tells which part makes them. Raises ConfigError."""
        raise ConfigError("server 'combine' makes no tasks by name: its YAML file tells whose to make; write its path instead")

    def _read_by_all(self, row: Row, maker: Part) -> Row:
        for one in self._parts:
            try:
                one.server.Task.model_validate(row)
            except ValidationError as error:
                wrong = error.errors()[0]
                field = ".".join(map(str, wrong["loc"]))
                raise ConfigError(
                    f"the tasks of part {maker.name!r} are none of part {one.part.name!r}: {field}: {wrong['msg']}; "
                    "name another with tasks_from"
                ) from error
        return row

    def _gathered_tools(self) -> dict[str, Tool]:
        owners: dict[str, str] = {}
        tools: dict[str, Tool] = {}
        for one in self._parts:
            for name, tool in one.server.tool_table().items():
                if name in tools:
                    raise ConfigError(f"parts {owners[name]!r} and {one.part.name!r} both have a tool {name!r}; leave one out")
                owners[name], tools[name] = one.part.name, tool
                setattr(self, name, _passed_on(one.part.name, getattr(one.server, name)))
        return tools


def combine(rewards: list[float], weights: list[float], *, how: How, gate: float) -> float:
    """One reward of several; r and w are the parts' rewards and weights.

    sum      sum_i w_i r_i
    product  prod_i r_i
    gate     sum_{i>1} w_i r_i  where r_1 >= gate, else 0
    """
    if how == "product":
        return math.prod(rewards)
    if how == "gate" and rewards[0] < gate:
        return 0.0
    first = 1 if how == "gate" else 0
    return math.fsum(weight * reward for weight, reward in zip(weights[first:], rewards[first:], strict=True))


async def _verdict(one: Running, task: CombinedTask, response: Response, session: Sessions | None) -> Verdict:
    try:
        async with asyncio.timeout(one.server.deadline_s):
            return await one.server.verify(task.of(one.part.name), response, None if session is None else session[one.part.name])
    except TimeoutError:
        raise VerificationFailed(f"part {one.part.name!r} was not done after {one.server.deadline_s:g} s") from None


def _passed_on(part: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(session: Sessions, **arguments: Any) -> Any:
        return await method(session[part], **arguments)

    return call


def _check(given: Settings) -> None:
    names = [part.name for part in given.parts]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two parts are called {repeated[0]!r}; give each a name of its own")
    if given.tasks_from is not None and given.tasks_from not in names:
        raise ConfigError(f"tasks_from={given.tasks_from!r} is no part{nearest(given.tasks_from, names)}")
    if given.how == "gate" and len(names) < 2:
        raise ConfigError("how=gate needs two parts: the first opens for the others")
    if given.how == "product" and any(part.weight != 1.0 for part in given.parts):
        raise ConfigError("how=product knows no weights; use shaping.scale")


def _made(part: Part) -> ResourceServer:
    """The server of a part. Raises ConfigError that names the part."""
    try:
        if "://" in part.server:
            raise ConfigError(f"{part.server} is an address; parts are opened in this process: a name, a file or a dotted path")
        if part.settings:
            if part.server.endswith((".yaml", ".yml")):
                raise ConfigError(f"{part.server} has the settings; leave out `settings`")
            kind = load_server(part.server)
            server = kind(validate(kind.Settings, part.settings))
        else:
            server = make_server(part.server)
    except ConfigError as error:
        raise ConfigError(f"part {part.name!r}: {error}") from error
    if not isinstance(server, ResourceServer):
        raise ConfigError(
            f"part {part.name!r}: {part.server} is a step-wise environment; only servers with /verify can be combined"
        )
    return server
