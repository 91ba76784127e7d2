"""Weights over vLLM's own weight-transfer engine: NCCL between machines, CUDA IPC on one GPU.

The trainer's half of the engine is vLLM's as well, so that vLLM, of the version that serves, must be installed beside the trainer.
Where a server dies in the middle of an NCCL broadcast, NCCL does not return: the training then has to be started again.
"""

import socket
import threading
from collections.abc import Iterable
from typing import Any, Literal

import httpx
import torch
from torch import Tensor

from gym_bridge.errors import ConfigError
from gym_bridge.policy.samplers.vllm_control import CONNECT_TIMEOUT_S, LONG_S, ReplicaControl, ReplicaError


class EngineTransfer:
    """Sends the tensors themselves, to one server after the other. They are the trainer's own: it must not step meanwhile."""

    adapter = None
    sleep_level = 2

    def __init__(self, kind: Literal["nccl", "ipc"], *, device: torch.device, from_any_thread: bool):
        """`device`: the CUDA device of the weights. `from_any_thread`: the trainer never steps while completions are asked for.

        Raises ConfigError without CUDA, and where vLLM is not installed."""
        if device.type != "cuda":
            raise ConfigError(f"sampler.transfer={kind} sends from a GPU, and policy.device={device}; set sampler.transfer=disk")
        try:
            import vllm.distributed.weight_transfer  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                f"sampler.transfer={kind} needs vLLM beside the trainer, of the version that serves: pip install vllm; "
                "or set sampler.transfer=disk"
            ) from None
        self.kind: Literal["nccl", "ipc"] = kind
        self._device, self.from_any_thread = device, from_any_thread
        self._weights: list[tuple[str, Tensor]] = []
        self._engines: dict[str, Any] = {}
        self._one_at_a_time = threading.Lock()

    def lay_out(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take hold of the tensors."""
        self._weights[:] = weights

    def deliver(self, control: ReplicaControl, *, whole: bool) -> None:
        """Send them to a server; `whole`: it may be another process than before, which the engine must meet first."""
        with self._one_at_a_time, torch.cuda.device(self._device):
            engine = None if whole else self._engines.get(control.url)
            try:
                if engine is None:
                    self._drop(control.url)
                    engine = self._engines[control.url] = self._meet(control)
                engine.send_weights()
            except (RuntimeError, ValueError, OSError) as failure:  # ReplicaError among them, and what `requests` raises
                self._drop(control.url)
                if isinstance(failure, ReplicaError):
                    raise
                raise ReplicaError(f"{self.kind} transfer failed: {failure}", url=control.url) from failure

    def settle(self) -> None:
        """Nothing to remove."""

    def close(self) -> None:
        """Leave the groups of all servers."""
        for url in list(self._engines):
            self._drop(url)

    def _meet(self, control: ReplicaControl) -> Any:
        from vllm.distributed.weight_transfer.clients import (  # pyright: ignore[reportMissingImports]
            HTTPVLLMWeightSyncClient,
        )
        from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
            WeightTransferTrainerFactory,
        )

        client = HTTPVLLMWeightSyncClient(control.url, timeout=LONG_S)
        return WeightTransferTrainerFactory.trainer_init(self._init_info(control), client=client, source=_source(self._weights))

    def _init_info(self, control: ReplicaControl) -> Any:
        if self.kind == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import (  # pyright: ignore[reportMissingImports]
                IPCTrainerInitInfo,
            )

            return IPCTrainerInitInfo(rank=0)
        from vllm.distributed.weight_transfer.nccl_engine import (  # pyright: ignore[reportMissingImports]
            NCCLTrainerInitInfo,
        )

        address, port = meeting_point(control.url)
        return NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=control.world_size() + 1, rank=0)

    def _drop(self, url: str) -> None:
        engine = self._engines.pop(url, None)
        if engine is not None:
            engine.shutdown()


def meeting_point(url: str) -> tuple[str, int]:
    """An address of this machine that the server at `url` can reach, and a free port of it. Raises ReplicaError."""
    at = httpx.URL(url)
    try:
        with socket.create_connection((at.host, at.port or 80), timeout=CONNECT_TIMEOUT_S) as connection:
            address = str(connection.getsockname()[0])
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])
    except OSError as failure:
        error = ReplicaError(f"cannot be reached: {failure}", url=url)
        error.away = True
        raise error from None


def _source(weights: list[tuple[str, Tensor]]) -> Any:
    """The list as vLLM's engine reads it, now and after each change."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource  # pyright: ignore[reportMissingImports]

    class Source(WeightSource):
        def metadata(self):
            return [ParamMeta(name, one.dtype, tuple(one.shape)) for name, one in weights]

        def __iter__(self):
            return iter(weights)

    return Source()
