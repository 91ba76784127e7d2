"""`gym-bridge audit`: exit codes, what goes where, colours on a real terminal."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHAT = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
WITH_TOOLS = {**CHAT, "tools": [{"type": "function", "function": {"name": "add"}}]}


@pytest.fixture
def model(tokenizer_directory, tmp_path) -> Path:
    """A model as far as an audit looks at it: no weights."""
    directory = shutil.copytree(tokenizer_directory, tmp_path / "model")
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def audit(gym_bridge, model):
    return lambda *argv: gym_bridge("audit", *argv, "--model", model)


@pytest.fixture
def write(tmp_path):
    def run(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return run


def test_a_clean_file_is_one_line_and_exit_0(audit, write):
    path = write(CHAT)
    ended = audit(path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{path}: sft, 1 row, ")
    assert ended.out.endswith("; no problems\n")


def test_notes_are_told_on_stderr_with_exit_0_and_not_at_all_when_quiet(audit, write):
    path = write(CHAT, CHAT)
    ended = audit(path)
    assert (ended.code, ended.err) == (0, f"{path}:2: note: duplicate: the row of line 1 once more\n")
    assert ended.out.endswith("; no problems, 1 note\n")
    assert audit(path, "--quiet").err == ""


def test_problems_are_told_on_stderr_with_exit_1(audit, write):
    path = write(CHAT, {"messages": []}, "{torn")
    ended = audit(path)
    assert ended.code == 1
    assert ended.err.splitlines()[0] == f"{path}:2: columns: expected the columns 'messages' and 'tools', found messages"
    assert ended.err.splitlines()[1].startswith(f"{path}:3: json: no JSON: ")
    assert ended.out.endswith("; 2 problems\n")


def test_severities_can_be_changed_for_a_pipeline(audit, write):
    path = write(CHAT, CHAT)
    assert audit(path, "--fail-on", "duplicate").code == 1
    assert audit(write({"messages": []}, CHAT), "--allow", "columns").code == 0
    wrong = audit(path, "--fail-on", "duplicates")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "duplicate" in wrong.err


def test_json_holds_the_whole_report(audit, write, tmp_path):
    question = "A train leaves Paris at nine and runs at 80 km/h; when does it reach Lyon?"
    row = {"messages": [{"role": "user", "content": question}, CHAT["messages"][1]]}
    ended = audit(write(row, WITH_TOOLS), "--json", "--show", 1, "--against", write({"q": question}, name="eval.jsonl"))
    report = json.loads(ended.out)
    assert (ended.code, ended.err) == (1, "")
    assert report["counts"] == {"null_keys": 1, "overlap": 1}
    assert [(one["line"], one["check"]) for one in report["problems"] + report["notes"]] == [(1, "overlap"), (2, "null_keys")]
    assert ["4", True] in report["shown"][0]["tokens"]
    assert report["overlaps"][0]["num_found"] == 1


def test_overlap_is_told_by_evaluation_file(audit, write):
    question = "A train leaves Paris at nine and runs at 80 km/h; when does it reach Lyon?"
    path, other = write({"input": question, "output": "b"}), write({"q": question}, {"q": "2+2?"}, name="eval.jsonl")
    ended = audit(path, "--against", other)
    assert f"{other}: 1 of 1 texts share n-grams with 1 rows of {path}; 1 too short to be compared\n" in ended.out


def test_what_is_too_much_to_tell_is_counted(audit, write):
    path = write(CHAT, *[{"messages": []}] * 130)
    ended = audit(path)
    assert ended.err.count(": columns: ") == 100
    assert f"{path}: not all are told above: 130 columns, 129 duplicate" in ended.err


def test_length_is_checked_against_max_length(audit, write):
    ended = audit(write(CHAT, {"input": "a"}), "--max-length", 3)
    assert ended.code == 1
    assert ":1: max_length: " in ended.err


@pytest.mark.parametrize("content", ["", "\n\n", "[]\n", '{"a": 1}\n', "{torn"])
def test_a_file_of_no_known_kind_is_one_line_and_exit_2(audit, tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    ended = audit(path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert str(path) in ended.err


def test_a_directory_and_a_missing_file_are_one_line_and_exit_2(audit, write, tmp_path):
    for argv in ([tmp_path], [tmp_path / "none.jsonl"], [write(CHAT), "--against", tmp_path]):
        ended = audit(*argv)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert str(tmp_path) in ended.err


def test_shown_tokens_stand_in_brackets_where_the_output_is_no_terminal(audit, write):
    ended = audit(write(CHAT), "--show", 1)
    assert "<|im_start|>assistant\n[4<|im_end|>]\n" in ended.out
    assert "\x1b" not in ended.out


TWICE = """
import os, sys
from gym_bridge.cli.main import main
for no_color in ("", "1"):
    os.environ["NO_COLOR"] = no_color
    try:
        main(sys.argv[1:])
    except SystemExit as ended:
        assert not ended.code, ended.code
    print("-----", flush=True)
"""


def on_a_terminal(argv: list[str]) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(argv, stdout=theirs, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"}):
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # Linux: the other side was closed
            pass
    os.close(ours)
    return written.decode()


def test_shown_tokens_are_coloured_on_a_terminal_unless_no_color_is_set(write, model: Path):
    argv = ["audit", str(write(CHAT)), "--model", str(model), "--show", "1"]
    coloured, plain, _ = on_a_terminal([sys.executable, "-c", TWICE, *argv]).split("-----")
    assert "\x1b[2m2\x1b[0m" in coloured
    assert [piece.split("\x1b[0m")[0] for piece in coloured.split("\x1b[7m")[1:]] == ["4", "<|im_end|>"]
    assert "\x1b" not in plain
    assert "[4<|im_end|>]" in plain
