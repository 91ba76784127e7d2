import math

import orjson
import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.io.token_store import TokenStore
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.tokens.auditor import MAX_PROBLEMS, audit_file


@pytest.fixture
def audit(renderer, tmp_path):
    def run(*rows, show=0):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"".join((row if isinstance(row, bytes) else orjson.dumps(row)) + b"\n" for row in rows))
        return audit_file(path, renderer, show=show)

    return run


def problems(report):
    assert report.num_problems == len(report.problems)
    return [(one.line, one.message) for one in report.problems]


USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
CHAT = {"messages": [{"role": "system", "content": "Hi"}, USER, ANSWER]}


def calling(*ids):
    calls = [{"id": one, "type": "function", "function": {"name": "add", "arguments": {}}} for one in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def output(call_id):
    return {"role": "tool", "tool_call_id": call_id, "content": "4"}


def test_a_clean_sft_file_is_counted_and_shown(audit, renderer):
    report = audit(CHAT, {"messages": [USER, calling("a", "b"), output("b"), output("a"), ANSWER]}, show=1)
    assert (report.kind, report.num_rows, report.num_problems) == ("sft", 2, 0)
    assert report.shown == [
        "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n[4<|im_end|>]\n"
    ]
    lengths = [len(renderer.render_ids(CHAT["messages"]))]
    alone = audit(CHAT)
    assert (alone.num_tokens, alone.longest, alone.num_trained_tokens) == (lengths[0], lengths[0], 2)
    assert report.longest == report.num_tokens - lengths[0] > lengths[0]
    assert alone.describe() == f"sft, 1 rows, {lengths[0]} tokens of which 2 train, longest row {lengths[0]}; no problems"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER, ANSWER, output("a")]}, "message 2: tool output 'a' answers no open tool call"),
        (
            {"messages": [USER, calling("a"), output("a"), output("a"), ANSWER]},
            "message 3: tool output 'a' answers no open tool call",
        ),
        ({"messages": [USER, calling("a"), ANSWER]}, "message 2: assistant speaks before tool call 'a' is answered"),
        ({"messages": [USER, calling(None), output(None)]}, "message 1: a tool call has no id"),
        ({"messages": [USER]}, "no assistant message to train on"),
        ({"messages": ["hello"]}, "every message needs a 'role'"),
        ({"messages": None}, "expected the columns 'messages' and 'tools', found messages"),
        ({"input": "a", "output": "b"}, "expected the columns 'messages' and 'tools', found input, output"),
    ],
)
def test_each_problem_of_a_chat_is_found_at_its_line(audit, row, message):
    assert problems(audit(CHAT, row, CHAT)) == [(2, message)]


def test_a_malformed_call_is_a_problem_and_no_crash(audit):
    ((line, message),) = problems(audit(CHAT, {"messages": [USER, {**ANSWER, "tool_calls": [{"id": "a"}]}]}))
    assert line == 2
    assert message.startswith("tool call {'id': 'a'} is not of the form")


def test_a_line_that_is_no_json_is_a_problem_too(audit):
    report = audit(b"{oops", CHAT, b"[]")
    assert (report.kind, report.num_rows) == ("sft", 3)
    assert [line for line, _ in problems(report)] == [1, 3]
    assert report.problems[1].message == "expected a JSON object, found list"


def rollout(task, reward, **more):
    row = {"_ng_task_index": task, "_ng_rollout_index": 0, "reward": reward, "response": {}, "responses_create_params": {}}
    return {**row, **more}


def turn(prompt, completion, logprobs, *, starts=True):
    return TurnTokens(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(logprobs),
        policy_version=0,
        starts_segment=starts,
    )


def test_rewards_must_be_finite_numbers(audit):
    report = audit(
        *(rollout(task, reward) for task, reward in enumerate([1.0, 0, None, "1", True])),
        b'{"response":{},"responses_create_params":{}}',
    )
    assert report.kind == "rollouts"
    assert problems(report) == [
        (3, "reward None is no finite number"),
        (4, "reward '1' is no finite number"),
        (5, "reward True is no finite number"),
        (6, "reward None is no finite number"),
    ]


def test_stored_tokens_are_counted_and_their_logprobs_checked(audit, tmp_path):
    store = TokenStore(tmp_path / "rows.tokens")
    two_turns = [turn([5, 6], [7, 2], [-0.1, -0.2]), turn([5, 6, 7, 2, 8], [9], [-0.3], starts=False)]
    store.append(
        [
            ((0, 0, 0), two_turns),
            ((1, 0, 0), [turn([5], [6], [math.nan])]),
            ((2, 0, 0), [turn([5], [6], [0.5])]),
            ((4, 0, 1), [turn([5], [6], [-1.0])]),
        ]
    )
    report = audit(
        rollout(0, 1.0), rollout(1, 1.0), rollout(2, 1.0), rollout(3, 1.0), rollout(4, 0.0, gym_bridge={"attempt": 1}), show=1
    )
    assert [line for line, _ in problems(report)] == [2, 3, 4]
    assert report.problems[0].message == report.problems[1].message == "turn 0 has a log-prob that is not finite or above 0"
    assert report.problems[2].message.endswith("holds no tokens of task 3, rollout 0, attempt 0")
    assert (report.num_tokens, report.num_trained_tokens, report.longest) == (8, 4, 6)
    assert report.shown[0].count("[") == 2


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ({"input": "a", "output": "b"}, {"input": "a", "output": " \n"}, r"column 'output' is ' \n'; expected text"),
        ({"input": "a", "output": "b"}, {"input": "a"}, "column 'output' is None; expected text"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "chosen and rejected are equal",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": 1, "chosen": "b", "rejected": "c"},
            "column 'prompt' is 1; expected text",
        ),
    ],
)
def test_text_rows_are_checked(audit, good, bad, message):
    report = audit(good, bad)
    assert report.kind == ("response" if "input" in good else "dpo")
    assert problems(report) == [(2, message)]
    assert report.describe() == f"{report.kind}, 2 rows; 1 problem"


def test_all_problems_are_counted_and_a_hundred_told(audit):
    report = audit(CHAT, *[{"messages": [USER]}] * (MAX_PROBLEMS + 7))
    assert (report.num_rows, report.num_problems, len(report.problems)) == (MAX_PROBLEMS + 8, MAX_PROBLEMS + 7, MAX_PROBLEMS)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]\n", b'{"a": 1}\n'])
def test_a_file_of_no_known_kind_is_refused(renderer, tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        audit_file(path, renderer, show=0)
