"""The processes of one training, as torchrun tells of them in the environment. Imports no torch."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gym_bridge.errors import ConfigError

if TYPE_CHECKING:
    from gym_bridge.schemas.policy_settings import PolicySettings

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


def num_shares(policy: "PolicySettings") -> int:
    """Parts into which the microbatches of a step are dealt out: processes that compute one together count once.

    Raises ConfigError when the processes cannot be parted so.
    """
    size = 1 if (started := launched()) is None else started.size
    if size % policy.together:
        raise ConfigError(
            f"{policy.together_told}: this training has {size} process{'es' * (size > 1)}; start it "
            f"with torchrun --nproc-per-node {policy.together} -m gym_bridge train ..., or with a multiple of that"
        )
    return size // policy.together


def check_offload(policy: "PolicySettings", *, in_shards: bool) -> None:
    """Raises ConfigError where there is nothing to bring weights from to, and where they are in no shards."""
    if policy.cpu_offload and policy.device == "cpu":
        raise ConfigError("policy.cpu_offload=true has no effect with policy.device=cpu; set policy.device=cuda, or leave it out")
    if policy.cpu_offload and not in_shards:
        raise ConfigError(
            "policy.cpu_offload=true: weights in shards alone can lie in main memory; start the training with torchrun "
            "--nproc-per-node 1 -m gym_bridge train ..., or more"
        )


def launched() -> Launched | None:
    """What torchrun says of this process; None where it was started alone."""
    if not all(name in os.environ for name in VARIABLES):
        return None
    return Launched(
        **{name: int(os.environ[variable]) for name, variable in zip(("index", "size", "local_index"), VARIABLES, strict=False)}
    )
