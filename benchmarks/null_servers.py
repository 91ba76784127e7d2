"""A model and a resource server that cost next to nothing, so that the client is what is measured.

    python -m benchmarks.null_servers model resources [--delay-s 5]

A raw asyncio.Protocol with keep-alive and canned bodies; prints the URL of each as one line of JSON. The model speaks Responses: it
reasons and calls `get_weather`, and answers once it has seen the call's output. The resource server sets its session cookie on
every reply, as NeMo Gym's do, refuses a tool or a verification without it, and answers /verify with the row it was sent and a
reward.
"""

import argparse
import asyncio
import json
import sys

BACKLOG = 4096
USAGE = {
    "input_tokens": 412,
    "input_tokens_details": {"cached_tokens": 256},
    "output_tokens": 96,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 508,
}
THOUGHT = (
    "The user asks for the weather in a city. There is a tool for that, get_weather, and it takes the name of the city, so I call "
    "it with the city as the user wrote it, and read the description that it gives before I answer in one short sentence."
)
CALL = {
    "type": "function_call",
    "id": "fc_68b1d7e0a4c081a3",
    "call_id": "call_9fQ2mXw7Lr4TzK",
    "name": "get_weather",
    "arguments": '{"city":"San Francisco"}',
    "status": "completed",
}
ANSWER = {
    "type": "message",
    "id": "msg_68b1d7e2f70c81a3",
    "role": "assistant",
    "status": "completed",
    "content": [
        {
            "type": "output_text",
            "text": "It is cold in San Francisco today: take a coat when you go out.",
            "annotations": [],
        }
    ],
}
REASONING = {
    "type": "reasoning",
    "id": "rs_68b1d7dfc2a881a3",
    "summary": [{"type": "summary_text", "text": THOUGHT}],
}
TOOL_OUTPUT = b'{"city":"San Francisco","weather_description":"The weather in San Francisco is cold."}'
COOKIE = (
    b"Set-Cookie: WeatherResourcesServer___null=eyJzZXNzaW9uX2lkIjogIjBmN2M1ZWQ4LTJhYjYtNGQ4Yy05ZDM3LTgyNjA2Y2U5ZDFhMiJ9"
    b".aJx3Qg.m0Yq1u8B7kV5s2XnD4tE9wRzLpc; path=/; Max-Age=1209600; httponly; samesite=lax\r\n"
)


def reply(body: bytes, *, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    """A whole HTTP/1.1 reply."""
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), more)
    return head + body


def model_reply(*items: object) -> bytes:
    """A Responses object."""
    whole = {
        "id": "resp_68b1d7df9c0c81a3",
        "object": "response",
        "created_at": 1795000000,
        "status": "completed",
        "model": "null",
        "output": items,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": USAGE,
        "error": None,
        "incomplete_details": None,
    }
    return reply(json.dumps(whole, separators=(",", ":")).encode())


FIRST_TURN, LAST_TURN = model_reply(REASONING, CALL), model_reply(ANSWER)
SEEDED, TOOL_DONE = reply(b"{}", more=COOKIE), reply(TOOL_OUTPUT, more=COOKIE)
NO_SESSION = reply(b'{"detail":"no session"}', status=b"400 Bad Request")
NOT_FOUND = reply(b'{"detail":"Not Found"}', status=b"404 Not Found")


class NullServer(asyncio.Protocol):
    """One connection. A request is answered once its body is whole; `delay_s` later for the model."""

    def __init__(self, delay_s: float):
        self._delay_s = delay_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every whole request in what came."""
        received = self._received + data if self._received else data
        while (end := received.find(b"\r\n\r\n")) >= 0:
            place = received.find(b"Content-Length: ", 0, end)
            length = int(received[place + 16 : received.find(b"\r", place)]) if place >= 0 else 0
            if len(received) < end + 4 + length:
                break
            self._answer(received[:end], received[end + 4 : end + 4 + length])
            received = received[end + 4 + length :]
        self._received = received

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head[: head.find(b"\r")].split(b" ")[1]
        if path == b"/v1/responses":
            answer = LAST_TURN if b'"function_call_output"' in body else FIRST_TURN
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._transport.write, answer)
                return
        elif path == b"/seed_session":
            answer = SEEDED
        elif path not in (b"/get_weather", b"/verify"):
            answer = NOT_FOUND
        elif b"Cookie: WeatherResourcesServer___null=" not in head:
            answer = NO_SESSION
        elif path == b"/verify":
            answer = reply(body[:-1] + b',"reward":1.0}', more=COOKIE)
        else:
            answer = TOOL_DONE
        self._transport.write(answer)


async def serve(names: list[str], delay_s: float) -> None:
    """Serve each name at a port of its own until stdin closes: no server outlives the benchmark."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: NullServer(delay_s), "127.0.0.1", 0, backlog=BACKLOG) for _ in names]
    urls = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    print(json.dumps(dict(zip(names, urls, strict=True))), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=["model", "resources"])
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds after which the model answers")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.names, arguments.delay_s))
