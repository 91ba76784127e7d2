"""The policy that trains here and is sampled from vLLM servers: both halves of `sampler.kind=vllm`, and what a server needs.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --host 127.0.0.1 --port 8000 --enable-scale-out

with, where it applies: `--enforce-eager` and `--dtype float32` on a CPU, where several replicas each need a `--seed` of their own;
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and `--enable-lora --max-lora-rank RANK` for a policy with adapters, which then travel alone;
`--weight-transfer-config '{"backend": "nccl"}'` (or ipc, with VLLM_ALLOW_INSECURE_SERIALIZATION=1) for sampler.transfer;
`--enable-sleep-mode` for sampler.sleep. MODEL is the policy's architecture: its weights are the trainer's from the first push on.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.errors import ConfigError
from gym_bridge.io.server_list import ServerList
from gym_bridge.rollouts.http import connections_for
from gym_bridge.rollouts.models.loop_connections import LoopConnections
from gym_bridge.rollouts.models.model_http import ModelHttp
from gym_bridge.rollouts.models.vllm_replicas import VLLMReplicas
from gym_bridge.schemas.settings import SamplerSettings
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams

if TYPE_CHECKING:
    import httpx
    from torch import Tensor

    from gym_bridge.policy.samplers.vllm_control import ReplicaControl
    from gym_bridge.policy.samplers.vllm_transfer import TiedHead, Transfer
    from gym_bridge.policy.samplers.vllm_weights import VLLMWeights
    from gym_bridge.policy.torch_policy import TorchPolicy

log = logging.getLogger(__name__)

COMPLETION_TIMEOUT_S = 600.0
PATIENCE_S = 600.0
OUTPUT_HEAD, ON_CPU = "(lm_head): ParallelLMHead", "CPUAttention"
"""What vLLM prints of a model with an output head of its own, and of one on a CPU."""
WEIGHTS = "vllm_weights"
"""Directory of the run in which weights are laid down for servers on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMSampling:
    """A sampler over vLLM servers that follow the trainer's weights."""

    replicas: VLLMReplicas
    weights: "VLLMWeights"
    control: "httpx.Client"

    @property
    def version(self) -> int:
        """The version that was pushed last; -1 before the first push."""
        return self.weights.version

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """One completion, with the version whose weights sampled it; see `VLLMReplicas`."""
        return await self.replicas.sample(prompt_ids, params, key=key)

    def push(self, weights: "Iterable[tuple[str, Tensor]]", version: int) -> None:
        """Bring weights to the servers; see `VLLMWeights`."""
        self.weights.push(weights, version)

    def ensure(self, version: int) -> None:
        """Before an update to the weights of `version`: each server has what was pushed last, or sleeps; see `VLLMWeights`."""
        self.weights.ensure(version)

    def expect(self, num_in_flight: int) -> None:
        """Servers need not know how many rollouts are in flight."""

    def close(self) -> None:
        """Release the control side; connections that sample end with the event loop that made them."""
        self.weights.close()
        self.control.close()


def vllm_sampler(
    policy: "TorchPolicy", settings: SamplerSettings, *, overlaps: bool, run: Path, patience_s: float = PATIENCE_S
) -> VLLMSampling:
    """The sampler of `sampler.url`; waits until one of the servers answers.

    `overlaps`: weights are pushed while completions are under way. `run`: the run's directory. `patience_s`: how long no server
    at all may answer. Raises ConfigError for settings or servers that cannot do it, PolicyError when no server answers.
    """
    from gym_bridge.policy.samplers.vllm_control import ReplicaControl, control_client, reachable
    from gym_bridge.policy.samplers.vllm_weights import VLLMWeights

    if overlaps and settings.sleep:
        raise ConfigError("sampler.sleep: vLLM cannot sleep while rollouts overlap with steps; set overlap.max_staleness=0")
    servers = ServerList(settings.url, setting="sampler.url")
    key = os.environ.get("OPENAI_API_KEY")
    client = control_client(key)
    try:
        controls = servers.each(lambda url: ReplicaControl(_base(url), client))
        found = reachable(controls, patience_s=patience_s)
        modules = [one.modules() for one in found]
        tied = _tied_head(policy) if all(OUTPUT_HEAD in one for one in modules) else None
        transfer = _transfer(policy, settings, found, overlaps=overlaps, run=run, tied=tied)
        weights = VLLMWeights(controls, transfer, in_flight=overlaps, sleeps=settings.sleep, patience_s=patience_s)
    except BaseException:
        client.close()
        raise
    connections = LoopConnections(max_connections=connections_for("model"))
    retries = 0 if len(servers.current()) > 1 else 2  # another replica is asked at once
    https = servers.each(
        lambda url: ModelHttp(_base(url), client=connections, api_key=key, timeout_s=COMPLETION_TIMEOUT_S, max_retries=retries)
    )
    seeded = not any(ON_CPU in one for one in modules)
    return VLLMSampling(replicas=VLLMReplicas(https, weights, seeded=seeded), weights=weights, control=client)


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _transfer(
    policy: "TorchPolicy",
    settings: SamplerSettings,
    found: "Sequence[ReplicaControl]",
    *,
    overlaps: bool,
    run: Path,
    tied: "TiedHead | None",
) -> "Transfer":
    """The adapter alone where there is one and all servers take it, else the whole model by `sampler.transfer`."""
    from gym_bridge.policy.samplers.vllm_engine import EngineTransfer
    from gym_bridge.policy.samplers.vllm_transfer import AdapterTransfer, DiskTransfer

    directory = _directory(settings, run)
    shutil.rmtree(directory, ignore_errors=True)  # of a start that was killed
    adapters = policy.adapters
    if adapters is not None:
        if all(one.takes_adapters(AdapterTransfer.adapter, str(directory.resolve() / "absent")) for one in found):

            def save(path: Path) -> None:
                adapters.save(path, adapters.whole(policy.masters.masters))

            return AdapterTransfer(directory, base=policy.directory, save=save, tied=tied)
        log.warning(
            "the adapter is merged into the whole model for each push: vLLM was not started with --enable-lora --max-lora-rank %d "
            "and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            adapters.config.r,
        )
    kind = settings.transfer
    if kind == "auto":
        kind = "nccl" if policy.device.type == "cuda" else "disk"
    if kind == "disk":
        return DiskTransfer(directory, tied=tied)
    return EngineTransfer(kind, device=policy.device, from_any_thread=not overlaps)


def _directory(settings: SamplerSettings, run: Path) -> Path:
    """Where this run, and nobody else, lays weights down."""
    if settings.weights_directory is None:
        return run / WEIGHTS
    digest = hashlib.blake2b(str(run.resolve()).encode(), digest_size=4).hexdigest()
    return settings.weights_directory / f"gym-bridge-{digest}"


def _tied_head(policy: "TorchPolicy") -> "TiedHead | None":
    """Where the output head's weight is the input embedding's."""
    from gym_bridge.policy.samplers.vllm_transfer import TiedHead

    head, embedding = policy.module.get_output_embeddings(), policy.module.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return None
    names = {module: name for name, module in policy.module.named_modules()}
    return TiedHead(f"{names[head]}.weight", f"{names[embedding]}.weight")
