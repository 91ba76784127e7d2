"""How full vLLM is, read from its Prometheus metrics."""

import asyncio
import re
from collections.abc import Sequence

from yarl import URL

from gym_bridge.rollouts.http import HttpClient, HttpError

EVERY_S = 2.0
TIMEOUT_S = 5.0
QUEUED = 0.1
"""Share of requests that wait instead of run, from which on the engine counts as full."""
_SAMPLE = re.compile(
    r"^vllm:(kv_cache_usage_perc|gpu_cache_usage_perc|num_requests_running|num_requests_waiting)(?:\{.*\})? (\S+)$", re.M
)


class ServerLoad:
    """The load of some vLLM servers, of which the fullest counts. An endpoint without metrics counts as empty."""

    def __init__(self, model_urls: Sequence[str], http: HttpClient):
        """`model_urls` end with /v1, beside which the metrics stand. The client is closed when the watch ends."""
        self._urls = [_metrics_of(url) for url in model_urls]
        self._http = http
        self._load = 0.0

    def __call__(self) -> float:
        """How full, as of the last look: 0 empty, 1 full."""
        return self._load

    async def watch(self) -> None:
        """Look every two seconds until cancelled."""
        try:
            while True:
                self._load = max(await asyncio.gather(*map(self._look, self._urls)))
                await asyncio.sleep(EVERY_S)
        finally:
            await self._http.close()

    async def _look(self, url: str) -> float:
        try:
            reply = await self._http.get(url, timeout_s=TIMEOUT_S)
        except HttpError:
            return 0.0
        return load_of(reply.body.decode(errors="replace")) if reply.status == 200 else 0.0


def _metrics_of(model_url: str) -> str:
    url = URL(model_url)
    return str(url.with_path(url.path.rstrip("/").removesuffix("/v1") + "/metrics", keep_query=True))


def load_of(metrics: str) -> float:
    """How full the engine is whose `/metrics` answered this text: its share of KV cache in use, 1 where requests queue."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        found[name] = max(found.get(name, 0.0), float(value)) if name.endswith("perc") else found.get(name, 0.0) + float(value)
    used = max(found.get("kv_cache_usage_perc", 0.0), found.get("gpu_cache_usage_perc", 0.0))
    waiting, running = found.get("num_requests_waiting", 0.0), found.get("num_requests_running", 0.0)
    return 1.0 if waiting > QUEUED * (waiting + running) else min(1.0, used)
