"""Small rollouts files as the viewer meets them, and the page itself, served to this process."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from gym_bridge.tokens.tokenizer import Tokenizer
from gym_bridge.viewer.library import Library
from gym_bridge.viewer.rollout_file import RolloutFile, Rows
from gym_bridge.viewer.serving import serve


def said(text: str) -> dict[str, Any]:
    """An assistant's message."""
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def called(call_id: str, name: str, **arguments: Any) -> dict[str, Any]:
    """A tool call."""
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": json.dumps(arguments)}


def answered(call_id: str, output: str) -> dict[str, Any]:
    """What a tool says."""
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def row(
    task: int = 0, index: int = 0, reward: float | None = 1.0, *output: dict[str, Any] | str, prompt: str = "", **ours: Any
) -> dict[str, Any]:
    """A rollout; texts in `output` are the assistant's. `ours` are fields of `gym_bridge`."""
    items = [said(one) if isinstance(one, str) else one for one in output or ("4",)]
    return {
        "responses_create_params": {"input": [{"role": "user", "content": prompt or f"What is {task}+{task}?"}]},
        "_ng_task_index": task,
        "_ng_rollout_index": index,
        "reward": reward,
        "response": {"output": items},
        "gym_bridge": {"stop_reason": "answered", "num_turns": 1, "policy_versions": [0]} | ours,
    }


def failure(task: int = 0, index: int = 0, kind: str = "model_error", message: str = "busy", *, attempt: int = 0) -> dict[str, Any]:
    """A failed attempt."""
    told = {"type": kind, "message": message, "stage": "model"}
    return {
        "responses_create_params": {"input": [{"role": "user", "content": f"What is {task}+{task}?"}]},
        "_ng_task_index": task,
        "_ng_rollout_index": index,
        "_ng_attempt_index": attempt,
        "_ng_failure_class": kind,
        "reward": None,
        "gym_bridge": {"failure": told, "attempt": attempt},
    }


def lines(rows: Sequence[dict[str, Any] | bytes]) -> bytes:
    """Rows as lines; bytes stand as they are."""
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in rows)


def write(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    """A file of these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines(rows))
    return path


def append(path: Path, *rows: dict[str, Any] | bytes) -> None:
    """More rows at the end of a file."""
    with path.open("ab") as file:
        file.write(lines(rows))


@contextmanager
def rollout_file(path: Path) -> Iterator[RolloutFile]:
    """A file as the viewer opens it."""
    with ExitStack() as stack:
        yield RolloutFile(path, name=path.name, stack=stack)


def rows_of(path: Path) -> Rows:
    """The rows of a file at one look."""
    with rollout_file(path) as file:
        return file.look()


class Page:
    """The page at an address."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def get(self, path: str, *, host: str | None = None) -> tuple[int, str]:
        """Status and text of a page."""
        request = Request(self.url + quote(path, safe="/?&=%:@"), headers={"Host": host} if host else {})
        try:
            with urlopen(request) as reply:
                return reply.status, reply.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path: str, form: Sequence[tuple[str, str]], **headers: str) -> tuple[int, str]:
        """Status and text of what a form leads to."""
        request = Request(self.url + path, data=urlencode(form).encode(), headers=headers)
        try:
            with urlopen(request) as reply:
                return reply.status, reply.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def text(self, path: str) -> str:
        """A page that is there."""
        status, text = self.get(path)
        assert status == 200, text
        return text


@contextmanager
def page_of(*paths: Path, tokenizer: Tokenizer | None = None) -> Iterator[Page]:
    """The page of some runs and files, served by a thread."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), list[str]()
    with Library(paths) as library:
        task = loop.create_task(serve(library, port=0, on_ready=lambda url: (found.append(url), ready.set()), tokenizer=tokenizer))
        thread = threading.Thread(target=_run, args=(loop, task))
        thread.start()
        try:
            assert ready.wait(20), "the page did not start"
            yield Page(found[0])
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            loop.close()


def _run(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]") -> None:
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        return
