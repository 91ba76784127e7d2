"""A player that knows the answers: an OpenAI endpoint that makes the ground-truth calls of calculator tasks, one a turn.

    gym-bridge tasks calculator depth=2 --num-tasks 200 --output tasks.jsonl
    python -m benchmarks.ground_truth_player tasks.jsonl --port 9100 &
    gym-bridge collect --input tasks.jsonl --output scripted.jsonl --server calculator \
        --model-url http://127.0.0.1:9100/v1 --model-api chat --model ground-truth

An operand that is the result before is written as its letter. Rollouts of it warm a policy up that has never called a tool.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from gym_bridge.io.jsonl import read_jsonl


def replies(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the player says in each turn of a task: its calls, then the answer."""
    said: list[dict[str, Any]] = []
    for number, call in enumerate(row["ground_truth"]):
        arguments = json.loads(call["arguments"])
        if number:
            arguments[next(iter(arguments))] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number - 1]
        function = {"name": call["name"], "arguments": json.dumps(arguments)}
        calls = [{"id": f"call_{number}", "type": "function", "function": function}]
        said.append({"role": "assistant", "content": None, "tool_calls": calls})
    return [*said, {"role": "assistant", "content": str(row["expected_answer"])}]


def app_of(tasks: Path) -> web.Application:
    """The endpoint, which knows a task by its question."""
    known = {row["responses_create_params"]["input"][-1]["content"]: replies(row) for _, row in read_jsonl(tasks)}

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        question = next(one["content"] for one in body["messages"] if one["role"] == "user")
        turn = sum(one["role"] == "assistant" for one in body["messages"])
        message = known[question][turn]
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        reply = {"id": "scripted", "object": "chat.completion", "created": 0, "choices": [choice], "usage": usage}
        return web.json_response({**reply, "model": body["model"]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--port", type=int, default=9100)
    arguments = parser.parse_args()
    web.run_app(app_of(arguments.tasks), host="127.0.0.1", port=arguments.port, print=None)


if __name__ == "__main__":
    main()
