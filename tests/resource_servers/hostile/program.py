"""A hostile program: its source, and how a run of it may end.

All of them are bounded, and aim at targets that may be lost: where the sandbox fails, a test fails, and not the machine.
"""

from dataclasses import dataclass

PRELUDE = '''
import ctypes, errno, os, platform, signal, subprocess, sys, threading, time
PARENT, PORT, SECRET, SOCKET, ABSTRACT, HOST, HERE = {places!r}

def say(word, what, found=""):
    os.write(1, f"{{word}} {{what}} {{found!r}}\\n"[:300].encode())

def tries(what, act):
    """ESCAPED unless it raises."""
    try:
        found = act()
    except BaseException as error:
        say("held", what, error)
    else:
        say("ESCAPED", what, found)

def finds(what, act):
    """ESCAPED when it finds something."""
    try:
        found = act()
    except BaseException as error:
        say("held", what, error)
    else:
        say("ESCAPED" if found else "held", what, found)

def creates(path):
    """ESCAPED when a file can be made there; it is taken away again."""
    def make():
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(path)
    tries(path, make)

def call(what, x86, arm, *arguments):
    """ESCAPED unless the kernel denies the system call: an invalid argument means that it had looked at it."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = x86 if platform.machine() == "x86_64" else arm
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    code = ctypes.get_errno()
    denied = result < 0 and code in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ESRCH)
    say("held" if denied else "ESCAPED", what, (result, errno.errorcode.get(code)))

def bounded(what, act, most):
    """Repeat an act until it fails; ESCAPED when it can be done `most` times."""
    kept = []
    try:
        while len(kept) < most:
            kept.append(act(len(kept)))
    except (OSError, MemoryError, RuntimeError) as error:
        say("held", what, (len(kept), error))
    else:
        say("ESCAPED", what, len(kept))
    return kept
'''


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """What one program tries. It says `held` or `ESCAPED` for each attempt, on stdout, unless its run ends before."""

    name: str
    source: str
    ends: tuple[str, ...] = ("exit",)
    """How the run may end; where `exit` is not among them, the program need not have said anything."""
    open_air: bool = False
    """It does get what it wants in a plain process, and may be let to: the battery's control."""
    language: str = "python"

    def text(self, places: tuple) -> str:
        """The whole source; `places` are the targets that PRELUDE unpacks."""
        return PRELUDE.format(places=places) + self.source if self.language == "python" else self.source
