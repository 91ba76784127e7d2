"""Signals that wait for the end of what must not be cut in two."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_deferred(number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Ctrl-C, or another signal, waits for the end of the block, and of those around it: what is done in it is done whole or not
    at all.
    """
    with noted(number) as interrupted:
        yield
    if interrupted():
        signal.raise_signal(number)  # for whoever else defers it, or Python


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
