"""NeMo Gym's resource-server dialect, in which this process is the agent: /seed_session, /<tool>, /verify."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.rows import response_object
from gym_bridge.rollouts.sessions.environment import Session, numbered, params_of, rewarded
from gym_bridge.rollouts.sessions.mcp import McpTools
from gym_bridge.rollouts.turn_loop import TurnLoop, conversation_of
from gym_bridge.schemas.rollouts import FailureType, RolloutKey, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedVerify:
    """The environment at the `url` of a resource server."""

    url: str
    http: HttpClient
    loop: TurnLoop
    request_timeout_s: float

    async def play(self, row: Row, key: RolloutKey, play: Play) -> Played:
        """Seed, play the turns, verify. Raises RolloutError.

        Tools that the server has over MCP are offered beside the task's own, and stand among the tools of the row.
        """
        params, sent = params_of(row), numbered(row, key)
        session = Session(self.http, self.url, timeout_s=self.request_timeout_s)
        with play.waiting_for("seed"):
            seeded = await session.ask("/seed_session", sent, FailureType.SEED)
            mcp = await McpTools.connect(session, seeded["mcp"], params.get("tools") or []) if seeded.get("mcp") else None
        if mcp is not None:
            params = {**params, "tools": mcp.beside(params.get("tools") or [])}
        stop = await self.loop.play(conversation_of(params, key), SessionTools(session, mcp), play)
        play.as_played = {"responses_create_params": params, "response": response_object(key, play, params)}
        with play.waiting_for("verify"):
            verdict = rewarded(await session.ask("/verify", {**sent, **play.as_played}, FailureType.VERIFY))
        return Played(row={**row, **verdict, **play.as_played}, stop=stop)


@dataclass(frozen=True, slots=True)
class SessionTools:
    """Tools as routes of a resource server, and those that it has over MCP. A tool's error is the model's to read."""

    session: Session
    mcp: McpTools | None = None

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a tool's result, and whether it is an error. Raises RolloutError where no answer came."""
        if self.mcp is not None and name.startswith(self.mcp.prefix):
            if name not in self.mcp.names:
                return orjson.dumps({"error": f"Unknown tool: {name}"}).decode(), True
            return await self.mcp.call_tool(name, arguments)
        reply = await self.session.post(f"/{name}", arguments, FailureType.TOOL)
        return reply.body.decode(errors="replace"), reply.status >= 300
