"""One attempt at a rollout, or at a cohort of them: whatever happens in it comes out as data."""

import asyncio
import time
import uuid
from dataclasses import dataclass, field

from gym_bridge.io.inline_tokens import with_inline_tokens
from gym_bridge.io.jsonl import dump_line
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.plan import PlannedRollout
from gym_bridge.rollouts.play import Play
from gym_bridge.rollouts.rows import failure_row, finished_row
from gym_bridge.rollouts.sessions.environment import Environment
from gym_bridge.rollouts.watchdog import StallWatchdog
from gym_bridge.schemas.rollouts import Failure, FailureType, Rollout, Row

Unit = tuple[PlannedRollout, ...]
"""What is started and tried again as one: a rollout, or the rollouts of a task as a cohort."""

CALLED_OFF = Failure(type=FailureType.CANCELLED, message="another rollout of its cohort failed")
NO_COORDINATES: Row = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """How an attempt ended, and the error that ended it."""

    rollout: Rollout
    error: RolloutError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Plays attempts in an environment, each within `timeout_s` seconds."""

    environment: Environment
    timeout_s: float
    watchdog: StallWatchdog = field(default_factory=StallWatchdog)
    inline_token_ids: bool = False
    """Token ids stand in the rows, as NeMo Gym's item fields, instead of beside them."""

    async def unit(self, unit: Unit, attempt: int) -> list[Attempted]:
        """One attempt at every member, in order. When one fails, the others are called off: their siblings will not come."""
        if len(unit) == 1:
            return [await self.one(unit[0], attempt)]
        plays = [Play(attempt=attempt) for _ in unit]
        playing = [
            asyncio.create_task(self.one(planned, attempt, play=play, coordinates=coordinates))
            for planned, play, coordinates in zip(unit, plays, _coordinates(len(unit)), strict=True)
        ]
        try:
            for task in asyncio.as_completed(playing):
                if (await task).rollout.failure is not None:
                    break
        finally:
            for task in playing:
                task.cancel()
            await asyncio.wait(playing)
        outcomes = [None if task.cancelled() else task.result() for task in playing]
        if all(one is not None and one.rollout.failure is None for one in outcomes):
            return [one for one in outcomes if one is not None]
        return [
            one
            if one is not None and one.rollout.failure is not None
            else Attempted(rollout=failed(planned, attempt, CALLED_OFF, play=play))
            for planned, play, one in zip(unit, plays, outcomes, strict=True)
        ]

    async def one(
        self, planned: PlannedRollout, attempt: int, *, play: Play | None = None, coordinates: Row = NO_COORDINATES
    ) -> Attempted:
        """One attempt in a fresh session; `play` is filled on the way. `coordinates` are sent with the task, and are not kept."""
        if planned.problem is not None:
            failure = Failure(type=FailureType.INVALID_ROW, message=planned.problem, terminal=True)
            return Attempted(rollout=failed(planned, attempt, failure))
        play, error = play or Play(attempt=attempt), None
        started = time.monotonic()
        self.watchdog.enter(play)
        try:
            async with asyncio.timeout(self.timeout_s):
                played = await self.environment.play({**planned.row, **coordinates}, planned.key, play)
            row = finished_row(played, play, planned.key, attempt=attempt, elapsed_s=time.monotonic() - started)
            for name in coordinates:
                row.pop(name, None)
            row |= {name: planned.row[name] for name in coordinates if name in planned.row}
            turns = tuple(play.turns)
            if self.inline_token_ids and turns:
                row, turns = with_inline_tokens(row, turns, play.last_items), ()
            return Attempted(rollout=Rollout(key=planned.key, attempt=attempt, row=row, line=_line_of(row), turns=turns))
        except RolloutError as raised:
            failure, error = raised.failure, raised
        except TimeoutError:
            failure = Failure(type=FailureType.TIMEOUT, message=f"not finished after {self.timeout_s:g} s")
        except Exception as broken:  # the door of one rollout: a row that we cannot play must not end the collection
            failure = Failure(type=FailureType.INVALID_ROW, message=f"{type(broken).__name__}: {broken}", terminal=True)
        finally:
            self.watchdog.leave(play)
        rollout = failed(planned, attempt, failure, play=play, elapsed_s=time.monotonic() - started)
        return Attempted(rollout=rollout, error=error)


def _coordinates(size: int) -> list[Row]:
    """What NeMo Gym's verifiers tell groups and their members apart by, for each of `size` members.

    A verifier keeps what came from those that were called off or killed, and compares it with nothing but its own group. So each
    attempt is a group of its own, although the contract has a number for that too: a killed run could not go on counting.
    """
    group = uuid.uuid4().hex
    shared = {"_ng_group_id": group, "_ng_group_attempt": 0, "_ng_cohort_failure_mode": "row"}
    return [{**shared, "_ng_group_member_index": index} for index in range(size)]


def _line_of(row: Row) -> bytes:
    """The row as its line of the file. Raises RolloutError: what was sent could be written, so it is the verdict that cannot."""
    try:
        return dump_line(row)
    except TypeError as error:
        raise RolloutError(FailureType.VERIFY, f"the verdict cannot be written to a row: {error}") from error


def failed(planned: PlannedRollout, attempt: int, failure: Failure, *, play: Play | None = None, elapsed_s: float = 0.0) -> Rollout:
    """The rollout of an attempt that has no reward; `play` tells how far it came."""
    row = failure_row(planned.row, failure, play or Play(), planned.key, attempt=attempt, elapsed_s=elapsed_s)
    return Rollout(key=planned.key, attempt=attempt, row=row, failure=failure)
