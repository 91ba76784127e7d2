"""NeMo Gym's resource-server dialect: /seed_session, /<tool>, /verify, one cookie jar a rollout on a shared connector."""

import math
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.schemas.rollouts import FAILURE_CLASS, FailureType, Row

MAX_REPLY_BYTES = 16 << 20
UNREACHABLE = (aiohttp.ClientConnectorError, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)


class NemoGymSession:
    """One rollout's conversation with a resource server.

    async with NemoGymSession(url, connector, timeout_s=60) as session:
        await session.seed(row)
        text, status = await session.call_tool("get_weather", {"city": "Paris"})
        verdict = await session.verify({**row, "response": response})
    """

    def __init__(self, url: str, connector: aiohttp.TCPConnector, *, timeout_s: float):
        self.url = url.rstrip("/")
        self._http = aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # cookies of servers that are addressed by number
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        )

    async def __aenter__(self) -> "NemoGymSession":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()

    async def seed(self, row: Row) -> None:
        """Open the session with the whole task row. Raises RolloutError."""
        body, status = await self._post("seed_session", row, FailureType.SEED)
        if status == 422:
            raise RolloutError(FailureType.INVALID_ROW, f"/seed_session refused the row: {_short(body)}", status=status)
        if status >= 400:
            raise RolloutError(FailureType.SEED, f"/seed_session answered {status}: {_short(body)}", status=status)

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, int]:
        """Body and HTTP status of one tool call; a tool's error is the model's to read. Raises RolloutError for no answer."""
        body, status = await self._post(name, dict(arguments), FailureType.TOOL)
        return body.decode(errors="replace"), status

    async def verify(self, row: Row) -> Row:
        """The verifier's reply, with a finite float `reward`. Raises RolloutError for anything else."""
        body, status = await self._post("verify", row, FailureType.VERIFY)
        if status >= 400:
            raise RolloutError(FailureType.VERIFY, f"/verify answered {status}: {_short(body)}", status=status)
        try:
            reply = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RolloutError(FailureType.VERIFY, f"/verify answered no JSON: {_short(body)}", status=status) from error
        if not isinstance(reply, dict):
            raise RolloutError(FailureType.VERIFY, f"/verify answered {type(reply).__name__}, not an object", status=status)
        if reply.get(FAILURE_CLASS):
            raise RolloutError(FailureType.JUDGE, f"/verify reported {reply[FAILURE_CLASS]!r}", status=status)
        reward = reply.get("reward")
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
            raise RolloutError(FailureType.VERIFY, f"/verify gave the reward {reward!r}; expected a finite number", status=status)
        return {**reply, "reward": float(reward)}

    async def _post(self, route: str, payload: Row, failure: FailureType) -> tuple[bytes, int]:
        try:
            async with self._http.post(
                f"{self.url}/{route}", data=orjson.dumps(payload), headers={"Content-Type": "application/json"}
            ) as reply:
                return await _read(reply, failure), reply.status
        except TimeoutError as error:
            raise RolloutError(FailureType.TIMEOUT, f"/{route} did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            gone = self.url if isinstance(error, UNREACHABLE) else None
            raise RolloutError(failure, f"/{route}: {str(error) or type(error).__name__}", gone=gone) from error


async def _read(reply: aiohttp.ClientResponse, failure: FailureType) -> bytes:
    body = await reply.content.read(MAX_REPLY_BYTES)
    while not reply.content.at_eof() and len(body) <= MAX_REPLY_BYTES:
        body += await reply.content.read(MAX_REPLY_BYTES)
    if len(body) > MAX_REPLY_BYTES:
        raise RolloutError(failure, f"{reply.url.path} answered more than {MAX_REPLY_BYTES} bytes")
    return body


def _short(body: bytes) -> str:
    text = body.decode(errors="replace")
    return text if len(text) <= 500 else text[:500] + " ..."
