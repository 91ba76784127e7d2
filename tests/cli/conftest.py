"""The real command line, in this process or in one of its own, and a real chat endpoint that can be made to wait."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from gym_bridge.cli.main import main

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def gym_bridge(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """Runs a command line in this process."""

    def run(*argv: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in argv])
        code = ended.value.code
        captured = capsys.readouterr()
        return Ended(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    terminate = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, terminate)


class Child:
    """A command line in a process of its own."""

    def __init__(self, *argv: object):
        command = [sys.executable, "-m", "gym_bridge", *map(str, argv)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))

    def address(self) -> str:
        """The address that `serve` prints."""
        assert self.process.stdout is not None
        found = re.search(r"http://[\w.]+:\d+", self.process.stdout.readline())
        assert found is not None
        return found.group()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """An end without notice."""
        self.process.kill()
        self.process.wait()

    def ended(self) -> Ended:
        """Wait for the end."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return Ended(self.process.returncode, out, err)


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Starts command lines; those that still run at the end of the test are killed."""
    children: list[Child] = []

    def start(*argv: object) -> Child:
        children.append(Child(*argv))
        return children[-1]

    yield start
    for one in children:
        if one.process.poll() is None:
            one.kill()
        one.process.communicate()


class ChatModel:
    """A chat endpoint that adds. It answers `free_calls` calls; the others wait until `release`."""

    def __init__(self, *, free_calls: int):
        self.free_calls, self.num_calls = free_calls, 0
        self._gate = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._ready = threading.Event()

    def __enter__(self) -> "ChatModel":
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def release(self) -> None:
        """Answer everyone, now and later."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def wait_for_calls(self, count: int) -> None:
        """Return once `count` calls have come in."""
        deadline = time.monotonic() + PATIENCE_S
        while self.num_calls < count:
            assert time.monotonic() < deadline, f"only {self.num_calls} calls came in"
            time.sleep(0.01)

    def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.num_calls += 1
        if self.num_calls > self.free_calls:
            await self._gate.wait()
        a, b = map(int, re.findall(r"\d+", body["messages"][-1]["content"]))
        message = {"role": "assistant", "content": f"{a} + {b} = {a + b}"}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
            }
        )


@pytest.fixture
def chat_model() -> Iterator[Callable[..., ChatModel]]:
    """Starts chat endpoints and stops them at the end of the test."""
    running: list[ChatModel] = []

    def start(*, free_calls: int = 1_000_000) -> ChatModel:
        running.append(ChatModel(free_calls=free_calls).__enter__())
        return running[-1]

    yield start
    for one in running:
        one.__exit__()


@pytest.fixture
def tasks(tmp_path: Path, gym_bridge: Callable[..., Ended]) -> Path:
    """Six sums."""
    path = tmp_path / "tasks.jsonl"
    assert gym_bridge("tasks", "arithmetic", "--num-tasks", 6, "--output", path).code == 0
    return path


@pytest.fixture
def rollout_keys() -> Callable[[Path], list[tuple[int, int]]]:
    """The sorted (task_index, rollout_index) of a rollouts file, which must be whole lines with a reward."""

    def read(path: Path) -> list[tuple[int, int]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(isinstance(row["reward"], float) for row in rows)
        return sorted((row["_ng_task_index"], row["_ng_rollout_index"]) for row in rows)

    return read
