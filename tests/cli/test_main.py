"""Exit codes, and one line on stderr for whatever a user gets wrong."""

import json
import sys
from pathlib import Path

import pytest

from gym_bridge.cli import main as command_line

FIXTURES = Path(__file__).parents[2] / "fixtures" / "nemo_gym"
VERBS = list(command_line.VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(gym_bridge, verb: str):
    ended = gym_bridge(verb, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert verb in ended.out


def test_help_and_version_exit_with_0(gym_bridge):
    from gym_bridge import __version__

    assert gym_bridge("--version").out == f"gym-bridge, version {__version__}\n"
    ended = gym_bridge("--help")
    assert ended.code == 0
    assert [verb for verb in VERBS if f"\n  {verb} " not in ended.out] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["colect"], "unknown verb 'colect'; did you mean 'collect'"),
        (["zzz"], f"unknown verb 'zzz'; known: {', '.join(sorted(VERBS))}"),
        (["train", "stf"], "No such command 'stf'"),
        (["eval", "comparee", "a", "b"], "No such command 'comparee'"),
        (["transform", "a.jsonl", "--too", "sft"], "No such option '--too'"),
        (["collect", "--num-repeat", "x", "--zzz"], "No such option"),
        (["transform", "--to", "sft", "--output", "b"], "Missing argument 'ROLLOUTS...'"),
        (["transform", "a.jsonl", "--output", "b"], "Missing option '--to'"),
        (["transform", "a.jsonl", "--to", "sfft", "--output", "b"], "unknown format 'sfft'; did you mean 'sft'?"),
        (["serve", "arithmetic", "--port", "many"], "'many' is not a valid integer"),
        (["audit", "a.jsonl", "--show", "x"], "'x' is not a valid integer"),
        (["tasks", "arithmetic"], "Missing option '--output'"),
        (["serve"], "Missing argument 'NAME'"),
        (["eval", "compare", "a.jsonl"], "Missing argument 'AFTER'"),
        (["eval", "report", "a.jsonl", "-k", "1,0"], "expected whole numbers from 1 on, such as 1,4,16, got '1,0'"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_one_line_and_exit_2(gym_bridge, argv: list[str], message: str):
    ended = gym_bridge(*argv)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("gym-bridge: ")
    assert message in ended.err


def collect(*more: object) -> list[object]:
    return ["collect", "--input", "a", "--output", "b", "--server", "arithmetic", *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-repeats", 0], "num_repeats='0': a task is repeated once at least"),
        (["--temperature", "inf"], "temperature=inf: Input should be a finite number"),
        (["--temperature", "nan"], "temperature=nan: Input should be a finite number"),
        (["--max-attempts", -1, "--limit", 0], "limit=0: Input should be greater than 0; max_attempts=-1: Input should be greater"),
        (["--rollout-timeout-s", 0], "rollout_timeout_s=0.0: Input should be greater than 0"),
    ],
)
def test_a_value_out_of_range_is_one_line_and_exit_2(gym_bridge, more: list[object], message: str):
    ended = gym_bridge(*collect(*more))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err


def test_a_file_that_is_not_there_is_exit_2_for_every_verb(gym_bridge, tmp_path: Path):
    missing = tmp_path / "no.jsonl"
    for argv in (
        ["transform", missing, "--to", "sft", "--output", tmp_path / "out.jsonl"],
        ["eval", "report", missing],
        ["eval", "compare", missing, missing],
        collect("--model-url", "http://127.0.0.1:9/v1", "--input", missing, "--output", tmp_path / "r.jsonl"),
    ):
        ended = gym_bridge(*argv)
        assert (ended.code, ended.err) == (2, f"gym-bridge: {missing}: No such file or directory\n")


def test_an_error_of_many_lines_becomes_one(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        command_line._end("choose from:\n\tsft,\n\tdpo", 2, False)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gym-bridge: choose from: sft, dpo\n"


def test_our_own_fault_is_exit_1_in_one_line_and_debug_shows_the_traceback(gym_bridge, tmp_path: Path, monkeypatch):
    (tmp_path / "broken_server.py").write_text(
        "from gym_bridge.config import StrictModel\n"
        "class Broken:\n    Settings = StrictModel\n    def __init__(self, *args, **options):\n        raise RuntimeError('boom')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ended = gym_bridge("serve", "broken_server:Broken")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "gym-bridge: internal error: RuntimeError: boom (run again with --debug for the traceback)\n"
    ended = gym_bridge("serve", "broken_server:Broken", "--debug")
    assert ended.code == 1
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.count("boom") > 1
    sys.modules.pop("broken_server")


def test_a_closed_stdout_is_no_traceback(child, tmp_path: Path):
    process = child("tasks", "arithmetic", "--num-tasks", 2, "--output", tmp_path / "t.jsonl").process
    process.stdout.close()
    process.stdout = None
    process.wait(timeout=60)
    assert "Traceback" not in process.stderr.read()


def test_tasks_writes_rows_and_says_how_many(gym_bridge, tmp_path: Path):
    path = tmp_path / "new" / "tasks.jsonl"
    argv = ["tasks", "arithmetic", "kind=tool", "--num-tasks", 3, "--seed", 1, "--split", "heldout", "--output", path]
    assert gym_bridge(*argv).out == f"{path}: 3 tasks\n"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["split"] for row in rows] == ["heldout"] * 3
    assert json.loads(gym_bridge(*argv, "--json").out) == {"output": str(path), "num_tasks": 3}
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["arithmetc"], "unknown resource server 'arithmetc'; did you mean 'arithmetic'?"),
        (["arithmetic", "kind"], "knob 'kind' has no '='; write name=value"),
        (["arithmetic", "knd=sum"], "unknown key 'knd'; did you mean 'kind'?"),
        (["arithmetic", "kind=product"], "kind='product': Input should be 'sum' or 'tool'"),
        (["arithmetic", "num_tasks=3"], "knob 'num_tasks=3' is an option: write --num-tasks 3"),
        (["arithmetic", "--num-tasks", "-1"], "num_tasks=-1: expected 0 or more"),
        (["arithmetic", "--num-tasks", "9999999"], "num_tasks=9999999: there are"),
        (["arithmetic", "--split", "test"], "'test' is not one of 'train', 'heldout'"),
    ],
)
def test_tasks_that_cannot_be_made_are_refused_and_nothing_is_written(gym_bridge, tmp_path: Path, argv: list[str], message: str):
    ended = gym_bridge("tasks", *argv, "--output", tmp_path / "t.jsonl")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err
    assert list(tmp_path.iterdir()) == []


def test_transform_and_eval_answer_in_text_and_in_json(gym_bridge, tmp_path: Path):
    rollouts, output = FIXTURES / "blackjack.jsonl", tmp_path / "sft.jsonl"
    argv = ["transform", rollouts, "--to", "sft", "--min-reward", "none", "--output", output]
    text, report = gym_bridge(*argv), json.loads(gym_bridge(*argv, "--json").out)
    num_rows = len(output.read_text().splitlines())
    assert text.out.startswith(f"{output}: {num_rows} rows from ")
    assert (report["rows_in"], report["rows_out"]) == (5, num_rows)
    tasks = tmp_path / "tasks.jsonl"  # the same rollouts as five tasks
    rows = [json.loads(line) | {"_ng_task_index": number} for number, line in enumerate(rollouts.read_text().splitlines())]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for argv in (["eval", "report", tasks], ["eval", "compare", tasks, tasks]):
        text, answer = gym_bridge(*argv), gym_bridge(*argv, "--json")
        assert (text.code, text.err, answer.code, answer.err) == (0, "", 0, "")
        assert isinstance(json.loads(answer.out), dict)
        assert text.out != answer.out


def test_rows_without_a_task_are_no_rollouts_to_report_on(gym_bridge):
    ended = gym_bridge("eval", "report", FIXTURES / "example_single_tool_call.jsonl")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "_ng_task_index is None" in ended.err


def test_a_wrong_min_reward_is_refused(gym_bridge, tmp_path: Path):
    rollouts = FIXTURES / "example_single_tool_call.jsonl"
    ended = gym_bridge("transform", rollouts, "--to", "sft", "--min-reward", "high", "--output", tmp_path / "sft.jsonl")
    assert (ended.code, ended.err) == (2, "gym-bridge: --min-reward 'high': expected a number or 'none'\n")
