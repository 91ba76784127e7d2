"""A player in another process: units go out and ended attempts come back over a stream, as do its calls of the sampler here.

A frame is 4 bytes of length and a pickle; both ends are this program.
"""

import asyncio
import itertools
import os
import pickle
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from gym_bridge.errors import GymBridgeError, ServerError
from gym_bridge.io.jsonl import dump_line
from gym_bridge.rollouts.attempts import Unit
from gym_bridge.rollouts.players import LocalPlayer, Retried
from gym_bridge.schemas.rollouts import Rollout
from gym_bridge.schemas.seams import Sampler
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

OPENING = 0
"""Number of the frame that opens the player, and of the answer that tells why it cannot play."""
HUNG_UP = (asyncio.IncompleteReadError, OSError)
Subject = Literal["open", "play", "retried", "last", "sample", "sampled", "dropped"]


class OpenPlayer(Protocol):
    """Makes the player at the other end; it is pickled: a function of a module, or a partial of one."""

    def __call__(self, sampler: Any, /) -> LocalPlayer:
        """The player; `sampler` is that of this end, None where it has none. Raises what keeps it from playing."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """What one end tells the other."""

    number: int
    """Of the unit, or of the call of the sampler."""
    about: Subject
    value: Any = None


class RemotePlayer:
    """This end. `sampler` answers the calls of the other one; `cause` says, once the other end has hung up, what became of it.

    With `whole_rows` rollouts come with all of their rows; else with the line of the file, and what a collector looks at.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        open_player: OpenPlayer,
        *,
        sampler: Sampler | None = None,
        whole_rows: bool = False,
        cause: Callable[[], Awaitable[GymBridgeError]],
    ):
        self._reader, self._writer, self._sampler, self._cause = reader, writer, sampler, cause
        self._waiting: dict[int, tuple[asyncio.Future[Sequence[Rollout]], Retried]] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)
        self.died: GymBridgeError | None = None
        """Why it plays no more."""
        _write(writer, Frame(OPENING, "open", (open_player, sampler is not None, whole_rows)))
        self.reading = asyncio.create_task(self._read_answers())

    @property
    def num_waiting(self) -> int:
        """Units that it plays."""
        return len(self._waiting)

    async def play(self, unit: Unit, retried: Retried, *, trusted: bool) -> Sequence[Rollout]:
        """As `Player.play`; raises as well what the other end died of."""
        if self.died is not None:
            raise self.died
        number = next(self._numbers)
        last: asyncio.Future[Sequence[Rollout]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = last, retried
        _write(self._writer, Frame(number, "play", (unit, trusted)))
        try:
            return await last
        except asyncio.CancelledError:
            _write(self._writer, Frame(number, "dropped"))
            raise
        finally:
            del self._waiting[number]

    async def close(self) -> None:
        """Hang up."""
        tasks = [self.reading, *self._calls.values()]
        for task in tasks:
            task.cancel()
        self._writer.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_answers(self) -> None:
        """Hand out what the other end sends; when it is gone, everyone who waits for it, now or later, hears so."""
        try:
            while self.died is None:
                self._hear(await _read(self._reader))
        except HUNG_UP:
            self._die(await self._cause())
        except GymBridgeError as error:
            self._die(error)
        except Exception as error:  # whoever waits for it would wait for ever
            self._die(ServerError(f"an answer cannot be read: {type(error).__name__}: {error}", url="a worker"))

    def _hear(self, frame: Frame) -> None:
        if frame.about == "sample":
            task = asyncio.create_task(self._sample(frame.number, *frame.value))
            self._calls[frame.number] = task
            task.add_done_callback(lambda _: self._calls.pop(frame.number, None))
        elif frame.about == "dropped":
            if (call := self._calls.get(frame.number)) is not None:
                call.cancel()
        elif frame.number == OPENING:
            self._die(frame.value)
        elif (waiting := self._waiting.get(frame.number)) is not None:
            last, retried = waiting
            _settle(last, frame.value) if frame.about == "last" else retried(frame.value)

    async def _sample(self, number: int, prompt_ids: Sequence[int], params: SamplingParams, key: SampleKey) -> None:
        assert self._sampler is not None, "else the other end was given none"
        try:
            answer = await self._sampler.sample(prompt_ids, params, key=key)
        except Exception as error:  # a rollout's own: the other end raises it where it was called
            answer = error
        _write(self._writer, Frame(number, "sampled", answer))

    def _die(self, error: GymBridgeError) -> None:
        self.died = self.died or error
        for last, _ in self._waiting.values():
            _settle(last, self.died)


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


class _FarSampler:
    """The sampler of the end that asks."""

    def __init__(self, writer: asyncio.StreamWriter):
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Completion]] = {}
        self._numbers = itertools.count(1)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """As the sampler's, and raises what it raises."""
        number = next(self._numbers)
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        _write(self._writer, Frame(number, "sample", (list(prompt_ids), params, key)))
        try:
            return await answer
        except asyncio.CancelledError:
            _write(self._writer, Frame(number, "dropped"))
            raise
        finally:
            del self._waiting[number]

    def hear(self, number: int, answer: Any) -> None:
        """Told what the sampler gave."""
        if (waiting := self._waiting.get(number)) is not None:
            _settle(waiting, answer)


async def serve_player(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The other end: play what comes in until the stream closes."""
    sampler = _FarSampler(writer)
    try:
        player, whole_rows = await _opened(reader, writer, sampler)
    except HUNG_UP:
        return
    prepared = _with_line if whole_rows else _slim
    playing: dict[int, asyncio.Task[None]] = {}
    watching = asyncio.create_task(player.watch())
    try:
        while True:
            frame = await _read(reader)
            if frame.about == "sampled":
                sampler.hear(frame.number, frame.value)
            elif frame.about == "dropped":
                if (dropped := playing.get(frame.number)) is not None:
                    dropped.cancel()
            else:
                unit, trusted = frame.value
                if trusted:
                    player.trust()
                playing[frame.number] = task = asyncio.create_task(_answer(frame.number, unit, player, writer, prepared))
                task.add_done_callback(lambda _, number=frame.number: playing.pop(number, None))
    except HUNG_UP:
        pass  # this end has what it wants, or is gone
    finally:
        tasks = [watching, *playing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await player.close()


async def _opened(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sampler: _FarSampler) -> tuple[LocalPlayer, bool]:
    """The player, and whether rows are wanted whole. What keeps it from opening is told, and then the other end hangs up."""
    open_player, samples, whole_rows = (await _read(reader)).value
    try:
        return open_player(sampler if samples else None), whole_rows
    except GymBridgeError as error:
        refusal = error
    except Exception as error:  # the door of a worker: the other end would ask others in vain
        refusal = ServerError(f"a worker cannot play: {type(error).__name__}: {error}", url=f"process {os.getpid()}")
    _write(writer, Frame(OPENING, "last", refusal))
    while True:
        await _read(reader)


async def _answer(
    number: int, unit: Unit, player: LocalPlayer, writer: asyncio.StreamWriter, prepared: Callable[[Rollout], Rollout]
) -> None:
    def tell(rollouts: Sequence[Rollout], about: Subject = "retried") -> None:
        _write(writer, Frame(number, about, [prepared(one) for one in rollouts]))

    try:
        tell(await player.play(unit, tell), "last")
    except GymBridgeError as error:
        _write(writer, Frame(number, "last", error))
    except Exception as error:  # the door of a worker: whoever waits for this unit would wait for ever
        message = f"a worker failed: {type(error).__name__}: {error}"
        _write(writer, Frame(number, "last", ServerError(message, url=f"process {os.getpid()}")))


def _with_line(rollout: Rollout) -> Rollout:
    """The rollout with its line of the file."""
    return replace(rollout, line=rollout.line or dump_line(rollout.row))


def _slim(rollout: Rollout) -> Rollout:
    """The rollout with its row as a line of the file, and as a dict only what is looked at."""
    row = {"reward": rollout.row["reward"], "gym_bridge": rollout.row["gym_bridge"]}
    return replace(_with_line(rollout), row=row)


def _write(writer: asyncio.StreamWriter, frame: Frame) -> None:
    body = pickle.dumps(frame, protocol=pickle.HIGHEST_PROTOCOL)
    with suppress(*HUNG_UP):
        writer.write(len(body).to_bytes(4, "big") + body)


async def _read(reader: asyncio.StreamReader) -> Frame:
    size = int.from_bytes(await reader.readexactly(4), "big")
    return pickle.loads(await reader.readexactly(size))
