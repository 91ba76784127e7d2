"""The control side of one vLLM server: pause, new weights, caches, sleep. What each route does is told from vLLM 0.32.

vLLM offers these routes to whoever reaches its port, and only when it is told to:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --host 127.0.0.1 --port 8000 --enable-scale-out
        with adapters (policy.lora)    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ... --enable-lora --max-lora-rank RANK
        with sampler.transfer=nccl     ... --weight-transfer-config '{"backend": "nccl"}'
        with sampler.transfer=ipc      VLLM_ALLOW_INSECURE_SERIALIZATION=1 ... --weight-transfer-config '{"backend": "ipc"}'
        with sampler.sleep             ... --enable-sleep-mode
        on a CPU                       ... --enforce-eager
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import httpx

from gym_bridge.errors import ConfigError, PolicyError, ServerError

log = logging.getLogger(__name__)

START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out"
CONNECT_TIMEOUT_S = 5.0
QUICK_S = 30.0
LONG_S = 600.0
"""A pause may wait for completions under way, and a large model takes its time to load."""
BETWEEN_TRIES_S = 1.0
AWAY_STATUSES = (502, 503, 504)

Pause = Literal["keep", "wait", "abort"]


class ReplicaError(ServerError):
    """A vLLM server did not do what it was told."""

    away = False
    """It could not be reached, or is not ready yet: it may come back."""


class ReplicaControl:
    """Tells one server what to do, from any thread. `url` is its base address, without `/v1`."""

    def __init__(self, url: str, client: httpx.Client):
        self.url, self._client = url, client

    def pause(self, mode: Pause) -> None:
        """Hold all requests that come; `keep` freezes those under way, `wait` lets them end, `abort` ends them."""
        self._post("/pause", params={"mode": mode, "clear_cache": "false"}, timeout_s=LONG_S)

    def resume(self) -> None:
        """Go on with what was held."""
        self._post("/resume")

    def is_paused(self) -> bool:
        """True between pause and resume, and asleep."""
        return bool(self._get("/is_paused").get("is_paused"))

    def reload(self, directory: str) -> None:
        """Load the safetensors files of a directory that the server sees too. One that cannot be read leaves it without weights."""
        self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": directory}}, timeout_s=LONG_S)

    def load_adapter(self, name: str, directory: str) -> None:
        """Load an adapter of peft's layout in the place of the one of this name."""
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": directory, "load_inplace": True}, timeout_s=LONG_S)

    def takes_adapters(self, name: str, absent: str) -> bool:
        """Whether the server was started for adapters: it then looks for the one that is asked for, in the `absent` directory."""
        try:
            self.load_adapter(name, absent)
        except ConfigError:
            return False
        except ReplicaError as error:
            if error.away:
                raise
            return "No adapter found" in str(error)
        return True

    def modules(self) -> str:
        """The modules of its model, as it prints them."""
        return str(self._post("/collective_rpc", {"method": "get_model_inspection"}).get("results"))

    def reset_prefix_cache(self) -> None:
        """Forget all that was computed with weights of before, for frozen requests too. Raises ReplicaError where it keeps some."""
        if not self._post("/reset_prefix_cache", params={"reset_running_requests": "true"}).get("success"):
            raise ReplicaError("it did not reset its prefix cache, which holds values of other weights", url=self.url)

    def label(self) -> str:
        """The name of the weights that it runs; `default` after a start."""
        return str(self._get("/weight_info").get("weight_version"))

    def set_label(self, label: str) -> None:
        """Name the weights that it runs from now on; each completion then tells this name."""
        self._post("/update_weight_version", {"new_version": label})

    def sleep(self, level: int) -> None:
        """Free the GPU: level 1 keeps the weights in main memory, 2 forgets them. Requests under way end first."""
        self._post("/sleep", params={"level": level, "mode": "wait"}, timeout_s=LONG_S)

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Take GPU memory for one part again; with the last one requests go on."""
        self._post("/wake_up", params={"tags": part}, timeout_s=LONG_S)

    def world_size(self) -> int:
        """Number of its workers, over all of its GPUs."""
        return int(self._get("/get_world_size", params={"include_dp": "true"})["world_size"])

    def transfer(self, route: str, body: Mapping[str, Any] | None = None) -> None:
        """One call of its weight-transfer engine."""
        self._post(f"/{route}", body, timeout_s=LONG_S)

    def check(self) -> None:
        """Raise ConfigError for a server that was started without the routes that training needs, ReplicaError for none."""
        self.label()
        reply = self._ask("POST", "/inference/v1/generate", {}, None, QUICK_S)
        if reply.status_code in (403, 404):
            raise self._without("/inference/v1/generate")

    def _get(self, path: str, *, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._read(path, self._ask("GET", path, None, params, QUICK_S))

    def _post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        timeout_s: float = QUICK_S,
    ) -> dict[str, Any]:
        return self._read(path, self._ask("POST", path, body, params, timeout_s))

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, params: Mapping[str, Any] | None, timeout_s: float
    ) -> httpx.Response:
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            return self._client.request(method, self.url + path, json=body, params=params, timeout=timeout)
        except httpx.HTTPError as failure:
            error = ReplicaError(f"{path}: no answer: {failure or type(failure).__name__}", url=self.url)
            error.away = True
            raise error from None

    def _read(self, path: str, reply: httpx.Response) -> dict[str, Any]:
        if reply.is_success:
            value = reply.json() if "json" in reply.headers.get("content-type", "") else None
            return value if isinstance(value, dict) else {}
        said = reply.text[:500]
        if reply.status_code == 404 and "No adapter found" not in said:
            raise self._without(path)
        error = ReplicaError(f"{path} answered HTTP {reply.status_code}: {said}", url=self.url, status=reply.status_code)
        error.away = reply.status_code in AWAY_STATUSES
        raise error

    def _without(self, path: str) -> ConfigError:
        return ConfigError(f"{self.url} has no {path}; start vLLM 0.32 or newer with: {START}")


def reachable(controls: Callable[[], Mapping[int, ReplicaControl]], *, patience_s: float) -> list[ReplicaControl]:
    """The servers that answer of those that are there now, of which there is at least one, waited for at most `patience_s`.

    Raises ConfigError for one that was started without the routes that training needs, PolicyError when none answers.
    """
    deadline = time.monotonic() + patience_s
    told = False
    while True:
        found, failure = [], "none is named yet"
        for control in controls().values():
            try:
                control.check()
                found.append(control)
            except ReplicaError as error:
                failure = str(error)
        if found:
            return found
        if time.monotonic() >= deadline:
            raise PolicyError(f"no vLLM server answers: {failure}")
        if not told:
            log.warning("no vLLM server answers: %s; waiting for one, %g s at most", failure, patience_s)
            told = True
        time.sleep(BETWEEN_TRIES_S)


def control_client(api_key: str | None) -> httpx.Client:
    """Connections to the servers' control side."""
    return httpx.Client(headers={"Authorization": f"Bearer {api_key}"} if api_key else None, trust_env=False)
