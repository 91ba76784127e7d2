"""The languages that programs of the sandbox may be written in: where their tools are, and how they are run."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gym_bridge.errors import ConfigError, nearest

_DRIVERS = Path(__file__).parent / "drivers"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """How to check, compile and run one source file. Commands start with an absolute path; they run in the sandbox, all of them."""

    name: str
    source: str
    """Name of the source file in the program's directory."""
    check: tuple[str, ...]
    """Exits with 0 when the source is well-formed."""
    run: tuple[str, ...]
    product: str | None = None
    """The file that `check` makes and `run` runs; None where the source itself is run."""
    call: tuple[str, ...] = ()
    """Runs the driver that calls one function; empty where programs have stdin and stdout alone."""
    driver: str | None = None
    """File name of that driver, among ours."""
    readable: tuple[str, ...] = ()
    """Directories of the tools, outside the system's own."""
    bounds_address_space: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        """What a program of this language may read of the machine; no path inside another."""
        wanted = sorted({*_SYSTEM, *self.readable})
        return tuple(one for one in wanted if not any(one != other and Path(one).is_relative_to(other) for other in wanted))

    def driver_files(self) -> dict[str, bytes]:
        """The driver, by name."""
        return {} if self.driver is None else {self.driver: (_DRIVERS / self.driver).read_bytes()}


def languages() -> dict[str, Language]:
    """The languages whose tools are on this machine, by name: python always, javascript with node, c with gcc or another cc."""
    found = [_find(name) for name in _FINDERS]
    return {one.name: one for one in found if one is not None}


def language(name: str) -> Language:
    """The language of that name. Raises ConfigError when it has none, or its tools are not here."""
    found = _find(name)
    if found is None:
        raise ConfigError(f"language {name!r}: unknown, or its tools are not on PATH{nearest(name, languages())}")
    return found


@cache
def _find(name: str) -> Language | None:
    return _FINDERS[name]() if name in _FINDERS else None


def _python() -> Language:
    python = str(Path(sys.executable).resolve())
    command = (python, "-I", "-S", "-B", "-X", "utf8")
    return Language(
        name="python",
        source="solution.py",
        check=(*command, "-c", "compile(open('solution.py', 'rb').read(), 'solution.py', 'exec')"),
        run=(*command, "solution.py"),
        call=(*command, "call.py"),
        driver="call.py",
        readable=(str(Path(sys.base_prefix).resolve()),),
    )


def _javascript() -> Language | None:
    node = shutil.which("node")
    if node is None:
        return None
    # a version manager's node is a script that looks for the real one, in places that the sandbox does not show
    asked = subprocess.run([node, "-p", "process.execPath"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if asked.returncode != 0:
        return None
    program = Path(asked.stdout.strip()).resolve()
    command = (str(program), "--max-old-space-size=256", "--v8-pool-size=1")
    return Language(
        name="javascript",
        source="solution.js",
        check=(*command, "--check", "solution.js"),
        run=(*command, "solution.js"),
        call=(*command, "call.js"),
        driver="call.js",
        readable=(_home(program),),
        bounds_address_space=False,
    )


def _c() -> Language | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    return Language(
        name="c",
        source="solution.c",
        check=(compiler, "-O2", "-std=gnu17", "-w", "-o", "solution", "solution.c", "-lm"),
        run=("./solution",),
        product="solution",
        readable=(_home(Path(compiler).resolve()),),
    )


def _home(program: Path) -> str:
    """The directory that a program was installed to."""
    return str(program.parent.parent if program.parent.name == "bin" else program.parent)


_FINDERS: dict[str, Callable[[], Language | None]] = {"python": _python, "javascript": _javascript, "c": _c}
