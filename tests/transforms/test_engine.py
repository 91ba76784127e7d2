from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.transforms.engine import TransformReport, transform_file

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures" / "nemo_gym"
QUICKSTART = ROOT / "gym_bridge" / "recipes" / "quickstart"


def line(reward="1.0", text="4", prompt="2+2?", **more):
    row = {"responses_create_params": {"input": prompt}, "response": {"output": [{"role": "assistant", "content": text}]}, **more}
    return orjson.dumps(row)[:-1] + b',"reward":' + reward.encode() + b"}\n"


def run(inputs, output, to="response", *, min_reward=None, min_margin=0.0, on_bad_row="error", report=None):
    return transform_file(inputs, output, to=to, min_reward=min_reward, min_margin=min_margin, on_bad_row=on_bad_row, report=report)


def rollouts(directory, *lines):
    path = directory / "rollouts.jsonl"
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize(
    ("folder", "name", "to"),
    [
        (FIXTURES, "example_session_state_mgmt", "sft"),
        (FIXTURES, "blackjack", "sft"),
        (FIXTURES, "example_single_tool_call", "response"),
        (QUICKSTART, "nemo_gym_rollouts", "dpo"),
    ],
)
def test_real_rollouts_make_the_dataset_that_was_checked_by_eye(folder, name, to, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    run([Path(f"{name}.jsonl")], tmp_path / "out.jsonl", to, min_reward=None if to == "dpo" else 0.9)
    assert (tmp_path / "out.jsonl").read_bytes() == (ROOT / "fixtures" / "expected" / f"{name}.{to}.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("to", "used", "rows_out", "dropped"),
    [
        ("response", 9, 9, {"low_reward": 2}),
        ("sft", 9, 9, {"low_reward": 2}),
        ("dpo", 2, 1, {"no_partner": 9}),
    ],
)
def test_the_shipped_rollouts_feed_every_format(to, used, rows_out, dropped, tmp_path):
    report = run([QUICKSTART / "nemo_gym_rollouts.jsonl"], tmp_path / "o", to, min_reward=None if to == "dpo" else 0.9)
    assert report == TransformReport(rows_in=11, rows_used=used, rows_out=rows_out, dropped=dropped)


def test_a_reward_at_the_minimum_is_kept_and_one_below_is_counted(tmp_path):
    path = rollouts(tmp_path, line("0.9"), line("0.89"), line("null"), line("-1"))
    report = run([path], tmp_path / "out.jsonl", min_reward=0.9, report=tmp_path / "report.json")
    assert report == TransformReport(rows_in=4, rows_used=1, rows_out=1, dropped={"low_reward": 2, "no_reward": 1})
    assert orjson.loads((tmp_path / "report.json").read_bytes()) == report.model_dump()


def test_failures_masked_and_truncated_siblings_make_no_pair(tmp_path):
    path = rollouts(
        tmp_path,
        line("1", "a"),
        line("0", "b", _ng_failure_class="judge_failed"),
        line("0", "c", mask_sample=True),
        line("0", "d", truncated=True),
        line("0", ""),
        line("0.5", "e"),
    )
    report = run([path], tmp_path / "out.jsonl", "dpo")
    assert report.dropped == {"failure": 1, "masked": 1, "no_answer": 1, "truncated": 1}
    (row,) = map(orjson.loads, (tmp_path / "out.jsonl").read_bytes().splitlines())
    assert (row["prompt"], row["chosen"], row["rejected"], row["gym_bridge"]["margin"]) == ("2+2?", "a", "e", 0.5)


def test_siblings_stand_in_one_file(tmp_path):
    (tmp_path / "a").mkdir()
    first, second = rollouts(tmp_path, line("1", "a"), line("0", "b")), rollouts(tmp_path / "a", line("-9", "c"))
    report = run([first, second], tmp_path / "out.jsonl", "dpo")
    assert report == TransformReport(rows_in=3, rows_used=2, rows_out=1, dropped={"no_partner": 1})


BAD = {
    "torn": (line()[:-9], "no JSON: "),
    "true": (line("true"), "reward is True; expected a finite number or null"),
    "string": (line('"1.0"'), "reward is '1.0'; expected a finite number or null"),
    "nan": (line("NaN") + b"", "no JSON: "),
    "infinite": (line("Infinity"), "no JSON: "),
    "array": (b"[1]\n", "expected a JSON object, found list"),
    "orphan": (
        line().replace(b'{"role":"assistant","content":"4"}', b'{"type":"function_call_output","call_id":"call_9","output":""}'),
        "tool output 'call_9' answers no tool call of this rollout",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_path_and_line_and_nothing_is_written(name, tmp_path):
    bad, message = BAD[name]
    path = rollouts(tmp_path, line(), b"\n", bad)
    with pytest.raises(DataError) as caught:
        run([path], tmp_path / "out.jsonl", "sft")
    assert str(caught.value).startswith(f"{path}:3: {message}")
    assert str(caught.value).endswith("; drop such rows with --on-bad-row skip")
    assert (caught.value.path, caught.value.line) == (path, 3)
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_skipped_and_counted_when_asked(name, tmp_path):
    path = rollouts(tmp_path, line(), BAD[name][0].rstrip() + b"\n", line())
    report = run([path], tmp_path / "out.jsonl", "sft", on_bad_row="skip")
    assert report == TransformReport(rows_in=3, rows_used=2, rows_out=2, dropped={"bad_row": 1})


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = rollouts(tmp_path, b"\xef\xbb\xbf", line())
    assert run([path], tmp_path / "out.jsonl").rows_out == 1


def test_a_placeholder_line_is_no_rollout(tmp_path):
    path = rollouts(tmp_path, b"<PLACEHOLDER ROW>\n", line())
    assert run([path], tmp_path / "out.jsonl").dropped == {"not_a_rollout": 1}


def test_an_empty_or_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"rollouts\.jsonl: the file is empty"):
        run([rollouts(tmp_path)], tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match=r"gone\.jsonl: No such file"):
        run([tmp_path / "gone.jsonl"], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_when_no_row_is_left_the_reasons_are_told_and_nothing_is_written(tmp_path):
    path = rollouts(tmp_path, line("0.1"), line("0.2"), line("null"))
    with pytest.raises(ConfigError, match=r"of 3 rows, 2 low_reward, 1 no_reward; lower --min-reward"):
        run([path], tmp_path / "out.jsonl", min_reward=0.9, report=tmp_path / "report.json")
    assert [one.name for one in tmp_path.iterdir()] == ["rollouts.jsonl"]


def test_an_output_from_before_survives_a_run_that_fails(tmp_path):
    (tmp_path / "out.jsonl").write_bytes(b"before\n")
    with pytest.raises(ConfigError):
        run([rollouts(tmp_path, line("0"))], tmp_path / "out.jsonl", min_reward=0.9)
    assert (tmp_path / "out.jsonl").read_bytes() == b"before\n"


def test_no_file_is_both_read_and_written(tmp_path):
    path = rollouts(tmp_path, line())
    (tmp_path / "link.jsonl").symlink_to(path)
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match="the output is the input"):
        run([path], tmp_path / "link.jsonl")
    with pytest.raises(ConfigError, match="the report is an input or the output"):
        run([path], out, report=out)
    with pytest.raises(ConfigError, match="named twice"):
        run([path, tmp_path / "link.jsonl"], out)
    with pytest.raises(ConfigError, match="no input file"):
        run([], out)
    assert path.read_bytes() == line()


@pytest.mark.parametrize(
    ("to", "settings", "message"),
    [
        ("dpo", {"min_reward": 0.9}, "min_reward does not apply to dpo"),
        ("sft", {"min_margin": 0.5}, "min_margin does not apply to sft"),
        ("dpo", {"min_margin": -1.0}, "expected 0 or more"),
        ("dpo", {"min_margin": float("nan")}, "expected 0 or more"),
        ("sftt", {}, "unknown format 'sftt'; did you mean 'sft'"),
        ("gym_bridge.transforms.sft:sft_row", {}, r"expected a gym_bridge\.transforms\.format\.Format"),
    ],
)
def test_settings_that_do_not_fit_are_refused(to, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run([rollouts(tmp_path, line())], tmp_path / "out.jsonl", to, **settings)


def test_a_format_of_ones_own_is_found_by_its_dotted_path(tmp_path):
    path = rollouts(tmp_path, line())
    assert run([path], tmp_path / "out.jsonl", "gym_bridge.transforms.sft:SFT").rows_out == 1


def test_a_report_that_does_not_close_is_refused():
    with pytest.raises(ValidationError, match="does not close"):
        TransformReport(rows_in=3, rows_used=1, rows_out=1, dropped={"tie": 1})


ROLLOUTS = [line("1"), line("0", "5"), line("0.95", "six"), line("1", prompt="3+3?"), line("0", truncated=True)]
OTHERS = [line("null"), line("1", ""), line("true"), line("1", mask_sample=True), b"{torn\n", b"<PLACEHOLDER ROW>\n", b"{}\n"]
LINES = st.sampled_from(ROLLOUTS + OTHERS)


@given(st.lists(LINES, min_size=1, max_size=12), st.sampled_from(["response", "sft", "dpo"]))
def test_no_row_is_lost_or_counted_twice(tmp_path_factory, lines, to):
    directory = tmp_path_factory.mktemp("lines")
    path, out = rollouts(directory, *lines), directory / "out.jsonl"
    try:
        report = run([path], out, to, min_reward=None if to == "dpo" else 0.9, on_bad_row="skip")
    except ConfigError:
        assert not out.exists()
        return
    rows = [orjson.loads(one) for one in out.read_bytes().splitlines()]
    assert report.rows_in == len(lines) == report.rows_used + sum(report.dropped.values())
    assert report.rows_out == len(rows)
    sources = [source for row in rows for source in (row["gym_bridge"]["source"] if to == "dpo" else [row["gym_bridge"]["source"]])]
    assert len(sources) == len(set(sources)) == report.rows_used
