"""The program's file tree: the system's libraries, read-only, a few devices, and one writable directory in memory."""

import os
from collections.abc import Iterable
from pathlib import Path

from gym_bridge.resource_servers.code.launcher import kernel

BOX = "/box"
"""The writable directory, where there is a mount namespace: a tmpfs that vanishes with the last process of the run."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

FILES_PER_MIB = 64

_PLACE = "/proc"  # exists everywhere, and nothing that is shown lies below it
_MIB = 1 << 20


def enter(readable: Iterable[str], *, uid: int, disk_mib: int) -> None:
    """Leave the machine's file tree for one that holds `readable` paths, DEVICES and BOX. Raises OSError.

    There is no /proc and no /sys in it. Everything but BOX is read-only, set-uid bits bind nowhere, and of the machine it shows
    what `readable` names.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", _PLACE, kind="tmpfs", flags=kernel.MS_NOSUID | kernel.MS_NODEV, options="mode=0755,size=1m")
    for path in readable:
        _show(path, kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV)
    for path in DEVICES:
        _show(path, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC)
    _make_box(uid=uid, disk_mib=disk_mib)
    kernel.change_root(_PLACE)
    kernel.restrict_mount("/", kernel.MOUNT_ATTR_RDONLY)


def _make_box(*, uid: int, disk_mib: int) -> None:
    box = _PLACE + BOX
    Path(box).mkdir()
    options = f"mode=0700,size={disk_mib * _MIB},nr_inodes={disk_mib * FILES_PER_MIB}"
    if os.geteuid() == 0:
        options += f",uid={uid},gid={uid}"
    kernel.mount("tmpfs", box, kind="tmpfs", flags=kernel.MS_NOSUID | kernel.MS_NODEV, options=options)
    Path(_PLACE, "tmp").symlink_to(BOX)


def _show(path: str, attributes: int) -> None:
    source, target = Path(path), Path(_PLACE + path)
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    kernel.mount(path, str(target), flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict_mount(str(target), attributes, recursive=True)
