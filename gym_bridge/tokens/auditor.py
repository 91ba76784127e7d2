"""Checks of rollouts and datasets, row by row: what a trainer would choke on, or would learn wrongly from."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gym_bridge.config import StrictModel
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import parse_line, read_lines
from gym_bridge.io.token_store import TokenStore
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, ROLLOUT_INDEX, TASK_INDEX, RolloutKey, Row
from gym_bridge.schemas.tokens import Segment
from gym_bridge.tokens.chat_samples import chat_sample
from gym_bridge.tokens.renderers import Renderer
from gym_bridge.tokens.trajectory import build_trajectory

MAX_PROBLEMS = 100  # told one by one; all are counted


class Problem(StrictModel):
    """Something wrong with one row."""

    line: int
    message: str


class AuditReport(StrictModel):
    """What an audit found."""

    kind: str
    """rollouts, sft, response or dpo, told from the columns of the first row."""
    num_rows: int
    num_problems: int
    problems: list[Problem]
    """The first hundred."""
    num_tokens: int
    """Tokens of all rows in which tokens are defined: rollouts that have them, and sft rows."""
    num_trained_tokens: int
    longest: int
    """Tokens of the longest row."""
    shown: list[str]
    """Rows asked for, trained tokens in brackets."""

    def describe(self) -> str:
        """One line for a terminal."""
        tokens = (
            f", {self.num_tokens} tokens of which {self.num_trained_tokens} train, longest row {self.longest}"
            if self.num_tokens
            else ""
        )
        return f"{self.kind}, {self.num_rows} rows{tokens}; {self.num_problems or 'no'} problem{'s' * (self.num_problems != 1)}"


def audit_file(path: Path, renderer: Renderer, *, show: int) -> AuditReport:
    """Check every row of `path`; `show` rows are given back with their trained tokens in brackets.

    Raises ConfigError when the file cannot be read or its rows are of no known kind.
    """
    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    shown: list[str] = []
    kind, check = None, None
    for line, text in read_lines(path):
        counts["rows"] += 1
        try:
            row = parse_line(text, path=None)
            if kind is None or check is None:
                kind, check = _kind_of(row, path, renderer)
            segments = check(row)
        except DataError as error:
            counts["problems"] += 1
            problems += [Problem(line=line, message=str(error))] if len(problems) < MAX_PROBLEMS else []
            continue
        length = sum(len(one.token_ids) for one in segments)
        counts["tokens"] += length
        counts["trained"] += sum(int(one.completion_mask.sum()) for one in segments)
        counts["longest"] = max(counts["longest"], length)
        if len(shown) < show:
            shown += ["\n".join(_marked(one, renderer) for one in segments)]
    if kind is None:
        raise ConfigError(f"{path}: no line is a JSON object; expected rows, one a line")
    return AuditReport(
        kind=kind,
        num_rows=counts["rows"],
        num_problems=counts["problems"],
        problems=problems,
        num_tokens=counts["tokens"],
        num_trained_tokens=counts["trained"],
        longest=counts["longest"],
        shown=shown,
    )


Check = Callable[[Row], tuple[Segment, ...]]
"""Gives the token view of a row, empty where it has none. Raises DataError when the row is wrong."""


def _kind_of(row: Row, path: Path, renderer: Renderer) -> tuple[str, Check]:
    if "response" in row and "responses_create_params" in row:
        store = TokenStore(path.with_name(path.stem + ".tokens"))
        return "rollouts", lambda one: _check_rollout(one, store)
    if "messages" in row:
        return "sft", lambda one: _check_chat(one, renderer)
    for kind, columns in (("response", ("input", "output")), ("dpo", ("prompt", "chosen", "rejected"))):
        if all(column in row for column in columns):
            return kind, lambda one, columns=columns: _check_texts(one, columns)
    raise ConfigError(f"{path}: rows with the columns {', '.join(sorted(row))} are neither rollouts nor response, sft or dpo rows")


def _check_rollout(row: Row, store: TokenStore) -> tuple[Segment, ...]:
    """Rewards are finite; token ids, where the store has them, are whole: prefixes hold, log-probs are finite and aligned."""
    reward = row.get("reward")
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise DataError(f"reward {reward!r} is no finite number")
    if not store.directory.exists() or TASK_INDEX not in row or ROLLOUT_INDEX not in row:
        return ()
    key = RolloutKey(row[TASK_INDEX], row[ROLLOUT_INDEX])
    attempt = (row.get("gym_bridge") or {}).get("attempt", row.get(ATTEMPT_INDEX, 0))
    turns = store.read((key.task_index, key.rollout_index, attempt))
    for number, turn in enumerate(turns):
        if len(turn.logprobs) != len(turn.completion_ids):
            raise DataError(f"turn {number} has {len(turn.completion_ids)} sampled tokens and {len(turn.logprobs)} log-probs")
        if not all(math.isfinite(one) and one <= 0 for one in turn.logprobs):
            raise DataError(f"turn {number} has a log-prob that is not finite or above 0")
    return build_trajectory(key, turns).segments


def _check_chat(row: Row, renderer: Renderer) -> tuple[Segment, ...]:
    """Tool calls and outputs are paired, the template renders, and only what an assistant wrote trains."""
    sample = chat_sample(row, renderer)
    open_calls: set[Any] = set()
    for number, message in enumerate(row["messages"]):
        role = message["role"]
        if role == "tool":
            if message.get("tool_call_id") not in open_calls:
                raise DataError(f"message {number}: tool output {message.get('tool_call_id')!r} answers no open tool call")
            open_calls.remove(message["tool_call_id"])
        elif open_calls:
            raise DataError(f"message {number}: {role} speaks before tool call {next(iter(open_calls))!r} is answered")
        for call in message.get("tool_calls") or []:
            if not isinstance(call.get("id"), str):
                raise DataError(f"message {number}: a tool call has no id")
            open_calls.add(call["id"])
    return (Segment(token_ids=sample.token_ids, completion_mask=sample.train_mask, rollout_logprobs=sample.train_mask * math.nan),)


def _check_texts(row: Row, columns: tuple[str, ...]) -> tuple[Segment, ...]:
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise DataError(f"column {column!r} is {row.get(column)!r}; expected text")
    if "chosen" in columns and row["chosen"] == row["rejected"]:
        raise DataError("chosen and rejected are equal")
    return ()


def _marked(segment: Segment, renderer: Renderer) -> str:
    text, trained = "", False
    for token, trains in zip(segment.token_ids.tolist(), segment.completion_mask.tolist(), strict=True):
        text += ("[" if trains else "]") * (trains != trained) + renderer.tokenizer.decode([token])
        trained = trains
    return text + "]" * trained
