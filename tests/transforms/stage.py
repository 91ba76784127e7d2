"""Small rollouts as lines of JSON, and transforms of them."""

import json
from pathlib import Path
from typing import Any

from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms.engine import transform_files
from gym_bridge.transforms.report import TransformReport

FORMATS = ("response", "sft", "grpo", "dpo", "preference", "tasks")

CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"n":1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "1"}


def said(text: str) -> dict[str, Any]:
    """An assistant's message."""
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}


def line(
    reward: Any = 1.0,
    text: str = "4",
    *,
    task: int | None = None,
    prompt: Any = "2+2?",
    output: list[Any] | None = None,
    tools: list[Any] | None = None,
    **more: Any,
) -> bytes:
    """One rollout, which answers `text` unless it has an `output` of its own."""
    params = {"input": prompt} | ({"tools": tools} if tools else {})
    index = {} if task is None else {"_ng_task_index": task}
    response = {"output": [said(text)] if output is None else output}
    return json.dumps({"responses_create_params": params, "response": response, "reward": reward} | index | more).encode() + b"\n"


def rollouts(directory: Path, *lines: bytes, name: str = "rollouts.jsonl") -> Path:
    """A file of these lines."""
    path = directory / name
    path.write_bytes(b"".join(lines))
    return path


def transformed(inputs: Path | list[Path], to: str, **settings: Any) -> tuple[list[dict[str, Any]], TransformReport]:
    """The rows that are made of `inputs`, `none` being the least reward unless one is given, and the report."""
    paths = [inputs] if isinstance(inputs, Path) else inputs
    settings.setdefault("output", paths[0].parent / "out.jsonl")
    if to in ("response", "sft"):
        settings.setdefault("min_reward", "none")
    report = transform_files(paths, TransformSettings(to=to, **settings))
    return rows_of(settings["output"]), report


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a dataset."""
    return [json.loads(row) for row in path.read_bytes().splitlines()] if path.exists() else []
