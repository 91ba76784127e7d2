"""What one run of a program may use."""

from dataclasses import dataclass, fields

from gym_bridge.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one run; whichever is met first ends it, or fails the call that asked for more. Raises ConfigError below 1.

    `wall_s` may be a fraction; the others are whole numbers.
    """

    cpu_s: int = 10
    """CPU seconds of all its processes together (killed), and of any one (SIGXCPU, and SIGKILL a second later)."""
    wall_s: float = 20.0
    """Seconds from start to end, sleeping included; then the whole run is killed."""
    memory_mib: int = 512
    """Address space of any one process (it gets memory errors), and resident memory of all together, seen every 50 ms (killed)."""
    num_processes: int = 32
    """Processes and threads at a time, up to three of them the sandbox's own; the next fork fails."""
    num_open_files: int = 128
    """Open descriptors of any one process."""
    file_mib: int = 16
    """Size of any one file that it writes."""
    disk_mib: int = 64
    """All files in its directory together, and 64 files for each MiB (writes fail; without a mount namespace it is killed)."""
    output_kib: int = 1024
    """Stdout, stderr and result, each; a run that writes more is killed."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "wall_s":
                good = isinstance(value, int | float) and 0 < value < float("inf")
            else:
                good = type(value) is int and value >= 1
            if not good:
                raise ConfigError(f"limits.{field.name} is {value!r}; expected a number above 0, whole but for wall_s")
