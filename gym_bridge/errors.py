"""Every error that gym-bridge raises on purpose.

    GymBridgeError
    ├── ConfigError    a setting, flag, name or file that the user gave is wrong
    ├── DataError      a line of a file is wrong: path, line; MediaError: it holds an image or sound, where only text fits
    ├── ServerError    a server did not do its part: url, status, attempts
    └── PolicyError    the model or its training went wrong; ContextOverflowError: a prompt that leaves it no room;
                       NonFiniteLossError: a loss or gradient that is no finite number

A message says where, what was found, what was expected and what to do. All of them survive pickling, so that they can
cross processes.
"""

import difflib
from collections.abc import Iterable


class GymBridgeError(Exception):
    """Base of all errors below; the CLI prints it as one line."""

    exit_code = 2

    def __reduce__(self):
        return _rebuild, (type(self), self.args, self.__dict__)


UNFIT = 3
"""Exit code of a gate that says no: a reward that is not fit to train on, a policy that lost too much."""


class ConfigError(GymBridgeError, ValueError):
    """A setting, flag, name or path that the user gave is wrong."""


class DataError(GymBridgeError, ValueError):
    """A file's content is wrong; `path` and `line` (1-based, None for the whole file) say where."""

    def __init__(self, message: str, *, path: object = None, line: int | None = None):
        self.path, self.line = path, line
        place = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(place + message)


class MediaError(DataError):
    """A row holds an image, a file or audio where only text has a place: nothing is wrong with it, it is of no use there."""


class ServerError(GymBridgeError, RuntimeError):
    """A server refused, failed or could not be reached; `status` is the HTTP status, None when there was no answer."""

    exit_code = 1

    def __init__(self, message: str, *, url: str, status: int | None = None, attempts: int = 1):
        self.url, self.status, self.attempts = url, status, attempts
        super().__init__(f"{url}: {message}")


class PolicyError(GymBridgeError, RuntimeError):
    """The model, its checkpoint or its training went wrong."""

    exit_code = 1


class ContextOverflowError(PolicyError):
    """The prompt leaves no room for an answer in the model's context."""


class NonFiniteLossError(PolicyError):
    """A loss or a gradient is no finite number; `sequences` are the training sequences that gave it."""

    def __init__(self, message: str, *, sequences: Iterable[object] = ()):
        self.sequences = tuple(sequences)
        super().__init__(message)


def _rebuild(kind: type[GymBridgeError], args: tuple, state: dict) -> GymBridgeError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


def nearest(name: str, known: Iterable[str], *, at_most: int | None = None) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, else `; known: ...`; empty when those are more than `at_most`."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(one) for one in close) + "?"
    lists = names and (at_most is None or len(names) <= at_most)
    return "; known: " + ", ".join(names) if lists else ""


def missing_extra(feature: str, extra: str) -> ConfigError:
    """The error for an optional dependency that is not installed."""
    return ConfigError(f"{feature} needs the '{extra}' extra: pip install 'gym-bridge[{extra}]'")
