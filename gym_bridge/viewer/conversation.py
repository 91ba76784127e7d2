"""One rollout as a conversation: messages, tool calls with their outputs, errors, and how long each took."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.content import TEXT_PARTS
from gym_bridge.schemas.rollouts import Item, Row

Kind = Literal["system", "user", "assistant", "reasoning", "call", "output", "other"]
OF_MODEL = ("assistant", "reasoning", "call")
ROLES: dict[str, Kind] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "output"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A piece of a conversation."""

    kind: Kind
    title: str
    """Who speaks, or the tool's name."""
    text: str
    call_id: str | None = None
    failed: bool = False
    """True for a tool's output that tells of an error."""
    turn: int | None = None
    """Number of the model call that it belongs to, from 0; None in the prompt."""
    seconds: float | None = None
    """How long the model, or the round of tools, took; told at its first piece."""
    version: int | None = None
    """The policy version that sampled it; told as `seconds` is."""


def conversation_of(view: RolloutView) -> list[Entry]:
    """Prompt and output, in order; outputs that answer a call bear its tool's name."""
    prompt = [_entry(item) for item in view.context]
    played = list(_with_turns(_entry(item) for item in view.output or ()))
    return list(_with_names([*prompt, *_timed(played, view.row)]))


def last_words(view: RolloutView) -> str:
    """What a table shows of a rollout: the model's last text, else its last call."""
    for item in reversed(view.output or ()):
        entry = _entry(item)
        if entry.kind in ("assistant", "call") and entry.text.strip():
            return entry.text if entry.kind == "assistant" else f"{entry.title}({entry.text})"
    return ""


def asked(view: RolloutView) -> str:
    """What a table shows of a task: the last message of the prompt that is not the model's."""
    return next((one.text for one in map(_entry, reversed(view.context)) if one.kind == "user"), "")


def pretty(text: str) -> str:
    """JSON objects and lists over several lines; any other text as it is."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, UnicodeDecodeError):
        return text


def content_text(content: Any) -> str:
    """The text of a message's content; what is no text is named."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    return "".join(map(_part, parts))


def _entry(item: Item) -> Entry:
    kind = item.get("type")
    call_id = item.get("call_id") if isinstance(item.get("call_id"), str) else None
    if kind == "function_call":
        arguments = item.get("arguments")
        text = arguments if isinstance(arguments, str) else _json(arguments)
        return Entry(kind="call", title=str(item.get("name")), text=pretty(text), call_id=call_id)
    if kind == "function_call_output":
        text = content_text(item.get("output"))
        return Entry(kind="output", title="tool", text=pretty(text), call_id=call_id, failed=_tells_error(text))
    if kind == "reasoning":
        return Entry(kind="reasoning", title="reasoning", text=content_text(item.get("summary") or item.get("content")))
    role = item.get("role")
    if isinstance(role, str) and kind in (None, "message"):
        return Entry(kind=ROLES.get(role, "other"), title=role, text=content_text(item.get("content")))
    return Entry(kind="other", title=str(kind or role or "item"), text=_json(item))


def _with_turns(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Numbers the model calls: a new one begins with the model's first piece after another's."""
    turn, models = -1, False
    for entry in entries:
        of_model = entry.kind in OF_MODEL
        turn += of_model and not models
        models = of_model
        yield replace(entry, turn=max(turn, 0))


def _with_names(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Outputs bear the name of the tool that they come from."""
    names: dict[str, str] = {}
    for entry in entries:
        if entry.kind == "call" and entry.call_id is not None:
            names[entry.call_id] = entry.title
        yield replace(entry, title=names.get(entry.call_id or "", entry.title)) if entry.kind == "output" else entry


def _timed(entries: Sequence[Entry], row: Row) -> list[Entry]:
    """With the seconds of each model call and round of tools, and the versions, where the row tells of as many."""
    ours = row.get("gym_bridge")
    told = ours if isinstance(ours, dict) else {}
    waits = _waits(told.get("waits_s"))
    turns = 1 + max((entry.turn for entry in entries if entry.turn is not None), default=-1)
    models = [seconds for stage, seconds in waits if stage == "model"]
    models = models if len(models) == turns else []
    tools = _tool_rounds(waits) if models else []
    versions = told.get("policy_versions")
    versions = versions if isinstance(versions, list) and len(versions) == turns else []
    timed, seen = [], set[tuple[int, bool]]()
    for entry in entries:
        turn, of_model = entry.turn or 0, entry.kind in OF_MODEL
        if (turn, of_model) not in seen:
            seen.add((turn, of_model))
            seconds = models[turn] if of_model and models else tools[turn] if not of_model and turn < len(tools) else None
            entry = replace(entry, seconds=seconds, version=versions[turn] if of_model and versions else None)
        timed.append(entry)
    return timed


def _waits(told: Any) -> list[tuple[str, float]]:
    pairs = [one for one in told if isinstance(one, list) and len(one) == 2] if isinstance(told, list) else []
    return [(stage, float(seconds)) for stage, seconds in pairs if isinstance(stage, str) and isinstance(seconds, int | float)]


def _tool_rounds(waits: Sequence[tuple[str, float]]) -> list[float | None]:
    """Seconds of what came after each model call: its tools, or a step of the environment."""
    rounds: list[float | None] = []
    for stage, seconds in waits:
        if stage == "model":
            rounds.append(None)
        elif rounds and stage in ("tools", "step"):
            rounds[-1] = (rounds[-1] or 0.0) + seconds
    return rounds


def _tells_error(text: str) -> bool:
    """True for the shape in which ours and NeMo Gym's servers answer a call that failed: an object with an `error`."""
    if not text.lstrip().startswith("{") or '"error"' not in text:
        return False
    try:
        told = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(told, dict) and bool(told.get("error"))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return _json(part)
    kind = part.get("type")
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return f"[refusal] {part['refusal']}"
    if kind in TEXT_PARTS or (kind is None and "text" in part):
        text = part.get("text")
        return text if isinstance(text, str) else _json(part)
    return f"[{kind}: {len(_json(part)):,} characters that are no text]"


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except (orjson.JSONEncodeError, UnicodeDecodeError):
        return repr(value)
