"""A program that a model wrote, and how a run of it ended."""

from dataclasses import dataclass, field, fields
from typing import Literal

from gym_bridge.resource_servers.code.launcher.order import EndedBy, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One source text in one language."""

    source: str
    language: str = "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a run ended. Seconds; of the outputs, what was written before a limit was met."""

    ended_by: EndedBy | Literal["compile"]
    """`exit`, `signal` (of whatever origin but ours), the limit that was met, or `compile`: the rest is the compiler's."""
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    result: bytes = field(default=b"", repr=False)
    """What it wrote to descriptor 3, where the drivers of calls write their record."""
    cpu_s: float
    """Of the program's first process and the children that it waited for; when the run was killed, of all, as last looked at."""
    wall_s: float

    @classmethod
    def of(cls, report: Report) -> "Finished":
        """What the launcher reports of a run that took place."""
        return cls(**{one.name: getattr(report, one.name) for one in fields(cls)})

    @property
    def succeeded(self) -> bool:
        """It ended by itself, with exit code 0."""
        return self.ended_by == "exit" and self.exit_code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A program, checked or compiled."""

    finished: Finished
    product: bytes | None = field(default=None, repr=False)
    """The compiled file, where the language makes one."""

    @property
    def succeeded(self) -> bool:
        """The source is well-formed, and compiled where it has to be."""
        return self.finished.succeeded
