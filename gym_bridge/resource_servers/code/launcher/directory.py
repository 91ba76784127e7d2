"""A directory that a hostile program fills, where there is no mount namespace to bound it and to take it away."""

import os
import stat
from contextlib import suppress
from pathlib import Path


def remove_tree(top: Path) -> None:
    """Remove `top` and all below it, however deep, whatever its modes. Follows no link; nobody may be writing there any more."""
    number, prefix = 0, os.urandom(8).hex()  # no name that the program could have foreseen
    top.chmod(0o700)
    while entries := list(top.iterdir()):
        for entry in entries:
            if not _is_directory(entry):
                entry.unlink()
                continue
            with suppress(PermissionError):
                entry.chmod(0o700)
            for inner in list(entry.iterdir()):  # lifted to the top: no path grows long and no call goes deep
                number += 1
                if _is_directory(inner):
                    inner.chmod(0o700)
                inner.rename(top / f"{prefix}-{number}")
            entry.rmdir()
    top.rmdir()


def exceeds(top: Path, *, num_bytes: int, num_files: int) -> bool:
    """Whether more than that lies below `top`, or more than can be seen while somebody is changing it."""
    waiting = [top]
    while waiting:
        with suppress(OSError):
            for entry in waiting.pop().iterdir():
                about = entry.lstat()
                num_bytes -= about.st_blocks * 512
                num_files -= 1
                if num_bytes < 0 or num_files < 0:
                    return True
                if stat.S_ISDIR(about.st_mode):
                    waiting.append(entry)
    return False


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
