"""What the processes of one training tell each other."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from gym_bridge.policy.interfaces import use_interface_towards
from gym_bridge.schemas.launched import Launched, launched

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a rank waits to be asked for something: rollouts and validations may take hours."""
TOGETHER = timedelta(hours=1)
"""How long a rank waits for the others in the midst of something, such as a push of all weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks(Launched):
    """This process among the others, connected with them."""

    channel: distributed.ProcessGroup
    """Plain values, over the hosts' own network."""

    def broadcast(self, value: bytes = b"") -> bytes:
        """What the leader tells, in every rank."""
        told = [value]
        distributed.broadcast_object_list(told, src=0, group=self.channel)
        return told[0]

    def gathered(self, found: T) -> list[T]:
        """What every rank found, in their order."""
        gathered: list[Any] = [None] * self.size
        distributed.all_gather_object(gathered, found, group=self.channel)
        return gathered

    def anywhere(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        flags = torch.tensor([flag], dtype=torch.int32)
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX, group=self.channel)
        return bool(flags.item())


@cache
def joined() -> Ranks | None:
    """The ranks among which this process was started; None where it was started alone."""
    started = launched()
    if started is None:
        return None
    use_interface_towards(os.environ["MASTER_ADDR"])
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=TOGETHER)
    atexit.register(distributed.destroy_process_group)
    channel = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=PATIENCE))
    return Ranks(**asdict(started), channel=channel)


def dealt(parts: Sequence[T], *, index: int, size: int) -> list[tuple[T, bool]]:
    """Every `size`-th of `parts`, and where another process has one more the first one, which then does not count."""
    rounds = -(-len(parts) // size)
    mine = parts[index::size]
    return [*((part, True) for part in mine), *((part, False) for part in parts[: rounds - len(mine)])]
