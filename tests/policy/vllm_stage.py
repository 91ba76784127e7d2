"""A server in a thread of its own that takes weights and samples as vLLM 0.32 does, as far as its answers are looked at here."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from aiohttp import web
from safetensors.numpy import load_file

from gym_bridge.policy.samplers.vllm_control import ReplicaControl, control_client


def weights(value: float):
    """A model of one weight."""
    return [("w", torch.tensor([value]))]


@dataclass
class VLLMServer:
    """Runs one weight, the first that it reads; its negative is the log-prob of every token that it samples."""

    first: float = 7.0
    """The weight of a start."""
    dev_mode: bool = True
    scale_out: bool = True
    takes_adapters: bool = False
    label: str = "default"
    paused: bool = False
    weight: float = 0.0
    loaded: dict[str, float] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)
    """Status that a path answers instead; 0: the connection is cut."""
    cache_keeps: bool = False
    modules: str = "Model( (lm_head): ParallelLMHead(num_embeddings=4) )"
    port: int = 0

    def __post_init__(self):
        self._stop: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "VLLMServer":
        """Serve, with the weights of a start; on the port of before where there was one."""
        self.label, self.paused, self.weight, self._stop = "default", False, self.first, Future()
        self.adapters.clear()
        self.calls.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._stop.result(timeout=10)
        return self

    def stop(self) -> None:
        """Be gone."""
        if self._thread is None:
            return
        loop, stop = self._stop.result()
        loop.call_soon_threadsafe(stop.set)
        self._thread.join()
        self._thread = None

    def told(self) -> list[str]:
        """The calls since it was asked last, but those that only look."""
        calls = [one for one in self.calls if not one.startswith("GET")]
        self.calls.clear()
        return calls

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._note])
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        stop = asyncio.Event()
        self._stop.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler) -> web.StreamResponse:
        query = f"?{request.query_string}" if request.query_string else ""
        self.calls.append(f"{request.method} {request.path}{query}")
        status = self.failing.get(request.path)
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status, text="it is broken") if status else await handler(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else {}
        name = request.path.removeprefix("/").replace("/", "_")
        if name not in ("inference_v1_generate", "v1_load_lora_adapter") and not self.dev_mode:
            name = "unknown"
        handler = getattr(self, f"on_{name}", None)
        status, reply = (404, {"detail": "Not Found"}) if handler is None else handler(body, request.query)
        return web.json_response(reply, status=status)

    def on_weight_info(self, body, query):
        return 200, {"weight_version": self.label}

    def on_is_paused(self, body, query):
        return 200, {"is_paused": self.paused}

    def on_pause(self, body, query):
        self.paused = True
        return 200, {"status": "paused"}

    def on_resume(self, body, query):
        self.paused = False
        return 200, {"status": "resumed"}

    def on_collective_rpc(self, body, query):
        if body["method"] == "get_model_inspection":
            return 200, {"results": [self.modules]}
        assert body["method"] == "reload_weights"
        files = sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors"))
        self.loaded = {name: float(value.flat[0]) for file in files for name, value in load_file(file).items()}
        self.weight = abs(next(iter(self.loaded.values())))
        return 200, {"results": [None]}

    def on_update_weight_version(self, body, query):
        self.label = body["new_version"]
        return 200, {"success": True}

    def on_reset_prefix_cache(self, body, query):
        return 200, {"success": not self.cache_keeps}

    def on_sleep(self, body, query):
        self.paused, self.weight = True, 0.0
        return 200, {"status": "sleeping"}

    def on_wake_up(self, body, query):
        self.paused = query["tags"] != "kv_cache"
        return 200, {"status": "awake"}

    def on_v1_load_lora_adapter(self, body, query):
        if not self.takes_adapters:
            return 500, {"error": {"message": "LoRA is not enabled. Use --enable-lora to enable LoRA."}}
        if not Path(body["lora_path"]).exists():
            return 404, {"error": {"message": "Loading lora x failed: No adapter found for <path>"}}
        self.adapters[body["lora_name"]] = body["lora_path"]
        return 200, {}

    def on_inference_v1_generate(self, body, query):
        if not self.scale_out:
            return 403, {"error": {"message": "Restart vllm serve with --enable-scale-out"}}
        if not body:
            return 400, {"error": {"message": "token_ids: Field required"}}
        self.bodies.append(body)
        if "model" in body and body["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        span = {"version": self.label, "start": 0, "end": 1}
        tokens = {"content": [{"token_id": 5, "logprob": -self.weight}]}
        choice = {"finish_reason": "stop", "token_ids": [5], "logprobs": tokens, "weight_versions": [span]}
        return 200, {"prompt_token_ids": body["token_ids"], "choices": [choice]}


@contextmanager
def vllm_servers(*servers: VLLMServer) -> Iterator[list[ReplicaControl]]:
    """Start the servers, and their control sides."""
    client = control_client(None)
    try:
        yield [ReplicaControl(one.start().url, client) for one in servers]
    finally:
        client.close()
        for one in servers:
            one.stop()


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
