"""What holds for any rollouts and any options: every row is accounted for, outputs have their calls, chosen beats rejected."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.nemo_rl_rows import RowKind, row_problems
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms.engine import transform_files
from gym_bridge.transforms.reasons import REASONS
from tests.transforms.stage import FORMATS, rollouts, rows_of, said

IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}]
PROMPTS = ("2+2?", "3+3?", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], IMAGE, [])
REWARDS = (0.0, 0.25, 1, 1.0, -1.0, None)
ENDS: tuple[dict[str, Any], ...] = (
    {"_ng_failure_class": "timeout"},
    {"mask_sample": True},
    {"truncated": True},
    {"verification_skipped": True},
    {"response": {}},
    {"reward": "1.0"},
)
LINES = (b"{torn\n", b"<PLACEHOLDER ROW>\n", b"[]\n")


def call(call_id: str, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "add", "arguments": arguments}


def output(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": "1"}


ITEMS = st.one_of(
    st.sampled_from(["4", "5", " "]).map(said),
    st.builds(call, st.sampled_from("ab"), st.sampled_from(['{"n":1}', '{"n":1}', "{}", "[1]", "{n"])),
    st.sampled_from("ab").map(output),
    st.just({"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}),
    st.just({"role": "user", "content": "more"}),
)
ROLLOUT = st.fixed_dictionaries(
    {
        "responses_create_params": st.fixed_dictionaries({"input": st.sampled_from(PROMPTS)}),
        "response": st.lists(ITEMS, max_size=5).map(lambda items: {"output": items}),
        "reward": st.sampled_from(REWARDS),
    },
    optional={"_ng_task_index": st.integers(0, 1), "expected_answer": st.sampled_from(["4", 4, None]), "score": st.integers(0, 2)},
)
ANSWERED = st.builds(lambda row, text: row | {"response": {"output": [said(text)]}}, ROLLOUT, st.sampled_from("456"))
ENDED = st.builds(lambda row, end: row | end, ANSWERED, st.sampled_from(ENDS))
WRITTEN = st.one_of(ANSWERED, ANSWERED, ANSWERED, ROLLOUT, ENDED).map(lambda row: json.dumps(row).encode() + b"\n")
LINE = st.one_of(WRITTEN, WRITTEN, WRITTEN, WRITTEN, st.sampled_from(LINES))

OF_ALL: dict[str, st.SearchStrategy[Any]] = {
    "where_group": st.sampled_from(["0 < pass_rate < 1", "num_rollouts > 1"]),
    "where": st.sampled_from(["reward >= 0 and num_turns < 3", "score > 0"]),
    "reward": st.sampled_from(["score / 2", "reward * 2"]),
    "split": st.just(0.5),
    "report": st.just(True),
}
DEDUPE = {"dedupe": st.sampled_from(["exact", "near"])}
MIN_REWARD = {"min_reward": st.sampled_from(["none", "0.5"])}
FLATTEN = {"flatten": st.sampled_from(["final", "transcript"])}
ARGUMENTS = {"arguments": st.sampled_from(["object", "string"])}
OF_ROLLOUTS = {**DEDUPE, **MIN_REWARD, "best_of": st.integers(1, 2)}
OF_PAIRS = {
    **DEDUPE,
    **MIN_REWARD,
    "pairs": st.sampled_from(["best_worst", "all", "adjacent", "random"]),
    "min_margin": st.sampled_from([0.0, 0.5]),
    "max_pairs_per_task": st.integers(1, 2),
}
OPTIONS = {
    "response": OF_ROLLOUTS | FLATTEN,
    "sft": OF_ROLLOUTS | ARGUMENTS | {"flat_tool_calls": st.booleans()},
    "grpo": MIN_REWARD | FLATTEN | {"output_field": st.just("score")},
    "dpo": OF_PAIRS | FLATTEN | {"prompt": st.sampled_from(["text", "messages"])},
    "preference": OF_PAIRS | ARGUMENTS,
    "tasks": {},
}


def dataset(to: str, lines: list[bytes], cut: int, options: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    """The rows, the drops and the number of used rollouts; where no row is left, what the error tells.

    The lines stand in two files, the first with `cut` of them, or in one.
    """
    with tempfile.TemporaryDirectory() as name:
        directory, parts = Path(name), [part for part in (lines[:cut], lines[cut:]) if part]
        paths = [rollouts(directory, *part, name=f"{number}.jsonl") for number, part in enumerate(parts)]
        out, options = directory / "out.jsonl", dict(options)
        if options.pop("report", False):
            options["report"] = directory / "report.json"
        try:
            report = transform_files(paths, TransformSettings(to=to, output=out, on_bad_row="skip", **options))
        except ConfigError as error:
            if "no task falls to" in str(error) or "no known column 'score'" in str(error):
                return [], {}, len(lines)
            told = str(error).partition(" rows, ")[2].partition(";")[0]
            return [], {reason: int(count) for count, reason in (one.split(" ") for one in told.split(", "))}, 0
        names = ("out.train.jsonl", "out.validation.jsonl") if "split" in options else ("out.jsonl",)
        sides = [rows_of(directory / name) for name in names]
        assert len(sides) == 1 or {prompt_of(row) for row in sides[0]}.isdisjoint(map(prompt_of, sides[1]))
        assert report.rows_in == len(lines)
        assert report.rows_out == sum(map(len, sides))
        return [row for side in sides for row in side], report.dropped, report.rows_used


def prompt_of(row: dict[str, Any]) -> str:
    """What the task asks, as JSON; equal for rows of one task."""
    if "messages" in row:
        return json.dumps(row["messages"][: row["gym_bridge"]["num_prompt_messages"]])
    return json.dumps(next(row[name] for name in ("input", "prompt", "context", "responses_create_params") if name in row))


def check_calls(messages: list[dict[str, Any]], flat: bool) -> None:
    """Every tool output has its call before it: by its id, or by their numbers."""
    known: set[str] = set()
    num_calls = 0
    for message in messages:
        calls = message.get("tool_calls", [])
        num_calls += len(calls)
        known |= {one["id"] for one in calls if not flat}
        if message["role"] == "tool":
            assert num_calls
            assert flat or message["tool_call_id"] in known


def check_rollout_row(row: dict[str, Any], flat: bool) -> None:
    messages = row.get("messages")
    if messages is None:
        assert row["output"].strip()
        return
    check_calls(messages, flat)
    assert messages[-1]["role"] == "assistant"
    assert messages[-1].get("tool_calls") or messages[-1]["content"].strip()
    assert len(messages) > row["gym_bridge"]["num_prompt_messages"]


def check_pair_row(row: dict[str, Any], options: dict[str, Any]) -> None:
    chosen, rejected = row["gym_bridge"]["reward"]
    assert row["gym_bridge"]["margin"] == chosen - rejected > options.get("min_margin", 0.0)
    assert options.get("min_reward") != "0.5" or chosen >= 0.5
    if "completions" not in row:
        assert row["chosen"] != row["rejected"]
        return
    sides = [one["completion"] for one in row["completions"]]
    assert sides[0] != sides[1]
    for side in sides:
        assert side[-1]["role"] == "assistant"
        check_calls([*row["context"], *side], flat=False)


def check_row(to: str, row: dict[str, Any], options: dict[str, Any]) -> None:
    flat = options.get("flat_tool_calls", False)
    if to in ("dpo", "preference"):
        check_pair_row(row, options)
    elif to in ("sft", "response"):
        check_rollout_row(row, flat)
    if not flat and to != "tasks" and options.get("prompt") != "messages":
        kind = RowKind.RESPONSE if to == "grpo" else RowKind(to)
        assert row_problems(row, kind) == []


@pytest.mark.parametrize("to", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_row_is_lost_or_counted_twice(to: str, data: st.DataObject):
    lines = data.draw(st.lists(LINE, min_size=1, max_size=10))
    options = data.draw(st.fixed_dictionaries({}, optional=OF_ALL | OPTIONS[to]))
    rows, dropped, used = dataset(to, lines, data.draw(st.integers(0, len(lines))), options)
    assert used + sum(dropped.values()) == len(lines)
    assert set(dropped) <= set(REASONS)
    if rows and to != "tasks":
        sources = [row["gym_bridge"]["source"] for row in rows]
        members = Counter(one for source in sources for one in (source if isinstance(source, list) else [source]))
        assert len(members) == used
        assert to in ("dpo", "preference") or max(members.values()) == 1
        assert len(set(map(str, sources))) == len(rows)
    for row in rows:
        check_row(to, row, options)
