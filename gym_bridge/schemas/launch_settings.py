"""Where a training is to be started, and on how much of it."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from gym_bridge.config import StrictModel

Where = Literal["slurm", "kubernetes", "hosts", "local"]


class LaunchSettings(StrictModel):
    """`gym-bridge launch`."""

    nodes: PositiveInt = 1
    """Machines."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of each machine."""
    cpus_per_node: PositiveInt = 8
    """CPUs of each machine."""
    memory: str = "64Gi"
    """Memory of each machine, as Kubernetes writes it."""
    hosts: tuple[str, ...] = ()
    """Machines to reach over ssh, the first of which leads; a user is written user@host. Once for each."""
    python: str | None = None
    """The interpreter with gym-bridge there; left out: this one, and on Kubernetes the image's python3."""
    image: str | None = None
    """Container image on Kubernetes, such as one built from this repository's Dockerfile."""
    claim: str | None = None
    """Kubernetes' claim of a volume that all machines share; it is mounted at `directory`."""
    directory: Path | None = None
    """Directory of the command, which all machines share; left out: this one."""
    partition: str | None = None
    """Slurm's partition."""
    account: str | None = None
    """Slurm's account."""
    time: str = "24:00:00"
    """How long Slurm may let it run."""
    name: str = "gym-bridge"
    """Of the job."""

    @model_validator(mode="after")
    def _as_many_hosts(self) -> "LaunchSettings":
        """Raises ValueError where hosts and nodes differ."""
        if self.hosts and self.nodes not in (1, len(self.hosts)):
            raise ValueError(f"--nodes {self.nodes}, but {len(self.hosts)} hosts are named; leave out --nodes")
        return self
