"""Rows to be audited, and the audit of some rows."""

from pathlib import Path
from typing import Any

import orjson

from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.tokens.audit.findings import AuditReport
from gym_bridge.tokens.audit.settings import AuditSettings
from gym_bridge.tokens.auditor import audit_file
from gym_bridge.tokens.renderers import Renderer

USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
CHAT = {"messages": [{"role": "system", "content": "Hi"}, USER, ANSWER]}


def write_rows(path: Path, rows: Any) -> Path:
    """A JSONL file; bytes are lines as they are."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else orjson.dumps(row)) + b"\n" for row in rows))
    return path


def audit_rows(directory: Path, renderer: Renderer, *rows: Any, **settings: Any) -> AuditReport:
    """The report on `rows.jsonl` of these rows; `rows.tokens` beside it is theirs."""
    return audit_file(write_rows(directory / "rows.jsonl", rows), renderer, AuditSettings(**settings))


def told(report: AuditReport) -> list[tuple[int, str, str]]:
    """Line, check and message of every problem and note; a report that left some out is no use here."""
    findings = [*report.problems, *report.notes]
    assert len(findings) == sum(report.counts.values()) == report.num_problems + report.num_notes
    return [(one.line, one.check, one.message) for one in findings]


def calling(*ids: Any, name: str = "add", arguments: Any = None) -> dict[str, Any]:
    """An assistant's message with tool calls."""
    function = {"name": name, "arguments": arguments or {}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": one, "type": "function", "function": function} for one in ids],
    }


def output(call_id: Any) -> dict[str, Any]:
    """A tool's message."""
    return {"role": "tool", "tool_call_id": call_id, "content": "4"}


def rollout(task: int, reward: Any = 1.0, *, items: list[Any] | None = None, prompt: str = "2+2?", **more: Any) -> dict[str, Any]:
    """A rollout row; without `items` it holds no output."""
    response = {} if items is None else {"output": items}
    params = {"input": [{"role": "user", "content": prompt}]}
    row = {"_ng_task_index": task, "_ng_rollout_index": 0, "reward": reward, "response": response}
    return {**row, "responses_create_params": params, **more}


def said(text: str, **more: Any) -> dict[str, Any]:
    """An assistant's message item."""
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}], **more}


def called(call_id: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    """A function_call item."""
    return {"type": "function_call", "call_id": call_id, "name": "add", "arguments": arguments, **more}


def returned(call_id: str) -> dict[str, Any]:
    """A function_call_output item."""
    return {"type": "function_call_output", "call_id": call_id, "output": "4"}


def turn(prompt: Any, completion: Any, logprobs: Any, *, starts: bool = True) -> TurnTokens:
    """One model call in tokens."""
    return TurnTokens(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(logprobs),
        policy_version=0,
        starts_segment=starts,
    )


def inline(prompt: Any, completion: Any, logprobs: Any) -> dict[str, Any]:
    """The fields of an item with token ids."""
    return {"prompt_token_ids": prompt, "generation_token_ids": completion, "generation_log_probs": logprobs}
