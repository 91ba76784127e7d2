"""The processes of one training, as torchrun tells of them in the environment. Imports no torch."""

import os
from dataclasses import dataclass

from gym_bridge.errors import ConfigError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """This process among the others."""

    index: int
    size: int
    local_index: int
    """Among those of this machine: the number of its GPU."""

    @property
    def leads(self) -> bool:
        """True in the process that reads data, plays, decides and writes; the others do what it asks of all."""
        return self.index == 0


def num_shares(tensor_parallel_size: int) -> int:
    """Parts into which the microbatches of a step are dealt out: processes that hold one copy of a layer together count once.

    Raises ConfigError when the processes cannot be parted so.
    """
    size = 1 if (started := launched()) is None else started.size
    if size % tensor_parallel_size:
        raise ConfigError(
            f"policy.tensor_parallel_size={tensor_parallel_size}: this training has {size} process{'es' * (size > 1)}; start it "
            f"with torchrun --nproc-per-node {tensor_parallel_size} -m gym_bridge train ..., or with a multiple of that"
        )
    return size // tensor_parallel_size


def launched() -> Launched | None:
    """What torchrun says of this process; None where it was started alone."""
    if not all(name in os.environ for name in VARIABLES):
        return None
    return Launched(
        **{name: int(os.environ[variable]) for name, variable in zip(("index", "size", "local_index"), VARIABLES, strict=False)}
    )
