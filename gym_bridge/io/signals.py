"""Signals that wait for the end of what must not be cut in two."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block, and of those around it: what is done in it is done whole or not at all."""
    with noted(signal.SIGINT) as interrupted, noted(signal.SIGTERM) as terminated:
        yield
    for number, came in ((signal.SIGINT, interrupted), (signal.SIGTERM, terminated)):
        if came():
            signal.raise_signal(number)  # for whoever else defers it, or Python


class _Left(BaseException):
    """Ends a call of `done_unless`."""


def done_unless(number: signal.Signals, came: Callable[[], bool], call: Callable[[], T]) -> T | None:
    """What the call gives; it is left at once, as by Ctrl-C, and None comes of it, when the signal comes, or has come before.

    `came`: whether it has, by `noted`, which is around this. The signal does nothing here outside the main thread.
    """
    before = signal.getsignal(number)

    def leave(number: int, frame: FrameType | None) -> None:
        assert callable(before), "`noted` is around it"
        signal.signal(number, before)  # a second one must not cut the way out
        before(number, frame)
        raise _Left

    try:
        signal.signal(number, leave)
    except ValueError:  # not the main thread, which alone gets signals
        return call()
    try:
        try:
            return None if came() else call()
        finally:
            signal.signal(number, before)
    except _Left:
        signal.signal(number, before)
        return None


@contextmanager
def noted(number: signal.Signals) -> Iterator[Callable[[], bool]]:
    """A function that tells whether the signal has come, which does nothing else meanwhile; no effect outside the main thread."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    try:
        before = signal.signal(number, note)
    except ValueError:  # not the main thread, which alone gets signals
        yield lambda: False
        return
    try:
        yield lambda: came
    finally:
        signal.signal(number, before)
