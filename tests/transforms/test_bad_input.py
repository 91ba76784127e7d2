"""Hostile and broken files: path and line, or a counted drop; never a traceback, never a half-written output."""

import gzip
import json

import pytest
import zstandard

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.transforms import engine
from tests.transforms.stage import CALL, FORMATS, line, rollouts, said, transformed

DEEP = '{"a":' * 300 + "1" + "}" * 300
REWARD = b'"reward": 1.0'

BAD = {
    "torn": (line()[:-9], "no JSON: "),
    "cut": (line()[: len(line()) // 2], "no JSON: "),
    "true": (line(True), "reward is True; expected a finite number or null"),
    "string": (line("1.0"), "reward is '1.0'; expected a finite number or null"),
    "nan": (line(float("nan")), "no JSON: "),
    "infinite": (line(float("inf")), "no JSON: "),
    "huge": (line().replace(REWARD, b'"reward": 1e999'), "no JSON: "),
    "array": (b"[1]\n", "expected a JSON object, found list"),
    "number": (b"7\n", "expected a JSON object, found int"),
    "invalid utf-8": (line(text="?").replace(b"?", b"\xff"), "no JSON: "),
    "invalid utf-8 that nobody reads": (line(note="?!").replace(b"?!", b"\xc3("), "no JSON: "),
    "lone surrogate": (line(text="?").replace(b'"?"', b'"\\ud800"'), "no JSON: "),
    "two rewards": (line().replace(REWARD, b'"reward": 1.0, "reward": "x"'), "reward is 'x'"),
    "response of a list": (line(response=[1]), "'response' is of type list; expected an object"),
    "output of a string": (line(response={"output": "4"}), "'output' is of type str; expected a list of objects"),
    "output of strings": (line(output=["4"]), "'output' holds a str; expected objects only"),
    "params of a string": (line(responses_create_params="x"), "'responses_create_params' is of type str"),
    "index of a string": (line(task="seven"), "_ng_task_index is 'seven'; expected an integer"),
    "index of a boolean": (line(task=True), "_ng_task_index is True; expected an integer"),
    "agent of a string": (line(agent_ref="math"), "'agent_ref' is of type str; expected an object"),
    "name of a number": (line(agent_ref={"name": 7}), "name of 'agent_ref' is 7; expected a string"),
}
BAD_CHATS = {
    "orphan": (
        [{"type": "function_call_output", "call_id": "call_9", "output": ""}, said("4")],
        "tool output 'call_9' answers no tool",
    ),
    "arguments": ([CALL | {"arguments": "[1]"}], "arguments of call 'c1' are no JSON object"),
    "deep arguments": ([CALL | {"arguments": DEEP}], "Recursion limit reached"),
    "content of a number": ([{"role": "assistant", "content": 4}], "content is of type int"),
    "part of a number": ([{"role": "assistant", "content": [4]}], "content part of type 'int'"),
    "unknown item": ([{"type": "web_search_call"}, said("4")], "item of type 'web_search_call' has no chat form"),
    "unknown role": ([{"role": "judge", "content": "4"}], "role 'judge'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_path_and_line_and_nothing_is_written(name, tmp_path):
    bad, message = BAD[name]
    path = rollouts(tmp_path, line(), b"\n", bad)
    for to in FORMATS:
        with pytest.raises(DataError) as caught:
            transformed(path, to)
        assert str(caught.value).startswith(f"{path}:3: {message}")
        assert str(caught.value).endswith("; drop such rows with --on-bad-row skip")
        assert (caught.value.path, caught.value.line) == (path, 3)
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_skipped_and_counted_when_asked(name, tmp_path):
    path = rollouts(tmp_path, line(0.0, "5"), BAD[name][0].rstrip() + b"\n", line())
    for to, rows in zip(FORMATS, (2, 2, 1, 1, 1, 1), strict=True):
        _, report = transformed(path, to, on_bad_row="skip", report=tmp_path / "report.json")
        assert (report.rows_in, report.dropped["bad_row"], report.rows_out) == (3, 1, rows)


@pytest.mark.parametrize("name", BAD_CHATS)
def test_a_rollout_without_a_chat_form_is_bad_where_a_chat_is_made_of_it(name, tmp_path):
    output, message = BAD_CHATS[name]
    lines = line(0.0, "5"), line(output=output), line()
    path = rollouts(tmp_path, *lines)
    for to, settings in (("sft", {}), ("sft", {"best_of": 3}), ("sft", {"dedupe": "near"}), ("preference", {})):
        with pytest.raises(DataError) as caught:
            transformed(path, to, **settings)
        assert str(caught.value).startswith(f"{path}:2: ")
        assert message in str(caught.value)
        _, report = transformed(path, to, on_bad_row="skip", **settings)
        assert (report.rows_used, report.dropped) == (2, {"bad_row": 1})
        (tmp_path / "out.jsonl").unlink()
    assert transformed(path, "tasks")[1].rows_used == 3


def test_a_failure_is_a_failure_whatever_else_is_wrong_with_it(tmp_path):
    failed = line("x", _ng_failure_class="timeout", agent_ref="math", task="seven", response=[])
    for to in ("sft", "tasks", "dpo"):
        _, report = transformed(rollouts(tmp_path, line(0.0), failed, line(1.0, "5")), to, report=tmp_path / "report.json")
        assert report.dropped == {"failure": 1}


def test_what_only_some_options_look_at_makes_a_bad_row_only_for_them(tmp_path):
    path = rollouts(tmp_path, line(task=0, tools=["no object"]))
    assert transformed(path, "response")[1].rows_out == 1
    assert transformed(path, "response", report=tmp_path / "report.json")[1].rows_out == 1
    for settings in ({"split": 0.5}, {"dedupe": "exact"}):
        with pytest.raises(DataError, match=r"rollouts\.jsonl:1: 'tools' holds a str; expected objects only; drop such rows"):
            transformed(path, "response", **settings)


def test_duplicate_keys_count_as_their_last_value(tmp_path):
    path = rollouts(tmp_path, line("x").replace(b'"reward": "x"', b'"reward": "x", "reward": 0.25'))
    assert transformed(path, "sft")[0][0]["gym_bridge"]["reward"] == 0.25
    transformed(rollouts(tmp_path, line(tag=1).replace(b'"tag": 1', b'"tag": 1, "tag": 2')), "tasks", bare=True)
    assert (tmp_path / "out.jsonl").read_bytes().count(b'"tag":2') == 1


def test_a_byte_order_mark_and_windows_line_ends_are_passed_over(tmp_path):
    path = rollouts(tmp_path, b"\xef\xbb\xbf", line().replace(b"\n", b"\r\n"), b"\r\n", b" \t\n", line(0.0, "5").rstrip())
    for to, rows in zip(FORMATS, (2, 2, 1, 1, 1, 1), strict=True):
        _, report = transformed(path, to)
        assert (report.rows_in, report.rows_out) == (2, rows)


def test_a_placeholder_line_is_no_rollout(tmp_path):
    path = rollouts(tmp_path, b"<PLACEHOLDER ROW>\n", line(), b"{}\n", b'{"responses_create_params":{"input":"a task"}}\n')
    for to in ("sft", "tasks"):
        assert transformed(path, to)[1].dropped == {"not_a_rollout": 3}


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n  \n", gzip.compress(b""), zstandard.compress(b"\n")],
    ids=["nothing", "blanks", "gzip", "zstd"],  # the time stands in a gzip file: no name for a test that two processes collect
)
def test_an_empty_file_is_refused(content, tmp_path):
    path = rollouts(tmp_path, content)
    for to in ("sft", "dpo"):
        with pytest.raises(ConfigError, match=r"rollouts\.jsonl: the file is empty"):
            transformed([path, rollouts(tmp_path, line(), name="b.jsonl")], to)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.jsonl: No such file"):
        transformed(tmp_path / "gone.jsonl", "sft")
    with pytest.raises(ConfigError, match="Is a directory"):
        transformed([tmp_path, rollouts(tmp_path, line())], "dpo")
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "tail"])
def test_a_damaged_archive_is_told_and_leaves_nothing(compress, damage, tmp_path):
    whole = compress(b"".join(line(1.0, f"answer {number}", task=number) for number in range(2000)))
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
    data = {"cut": whole[:-20], "flipped": flipped, "tail": whole + b"no archive"}[damage]
    path = rollouts(tmp_path, data)
    for to in ("sft", "tasks"):
        with pytest.raises(ConfigError, match=r"rollouts\.jsonl: the (gzip|zstd) file is damaged or cut off"):
            transformed(path, to, on_bad_row="skip")
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda path: path.write_bytes(b"{}\n" * 400), DataError, r"rollouts\.jsonl:1: the file changed while it was read"),
        (lambda path: path.write_bytes(line()), DataError, r"rollouts\.jsonl:2: the file changed while it was read"),
        (lambda path: path.unlink(), ConfigError, r"rollouts\.jsonl: No such file"),
    ],
    ids=["rewritten", "shortened", "gone"],
)
def test_a_file_that_changes_between_the_passes_is_told(change, error, message, tmp_path, monkeypatch):
    path = rollouts(tmp_path, line(1.0), line(0.0, "5"))
    real = engine.select

    def select(*args):
        change(path)
        return real(*args)

    monkeypatch.setattr(engine, "select", select)
    with pytest.raises(error, match=message):
        transformed(path, "dpo")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_lines_of_50_mb_go_through_every_format(tmp_path):
    path = rollouts(tmp_path, *(line(float(number == 0), f"{number}" + "x" * 50_000_000) for number in range(2)))
    for to in FORMATS:
        rows, report = transformed(path, to)
        assert report.rows_used in (1, 2)
        if to in ("sft", "response"):
            assert len(json.dumps(rows[1])) > 50_000_000


def test_many_small_and_large_lines_keep_their_numbers(tmp_path):
    lines = [line(1.0, "x" * (1 << 20 if number % 7 == 3 else 10), task=number) for number in range(30)]
    path = rollouts(tmp_path, *lines, line(True))
    with pytest.raises(DataError, match=r"rollouts\.jsonl:31: reward is True"):
        transformed(path, "sft")
    path = rollouts(tmp_path, *lines)
    rows, _ = transformed(path, "response")
    assert [row["gym_bridge"]["source"] for row in rows] == [f"{path}:{number}" for number in range(1, 31)]
    assert [len(row["output"]) for row in rows] == [1 << 20 if number % 7 == 3 else 10 for number in range(30)]
