"""The page over HTTP: every address, what is refused, exports, and foreign text that stays text."""

import json
import re
from pathlib import Path

import pytest

from gym_bridge.transforms.reasons import REASONS
from gym_bridge.viewer.list_pages import ListPages
from tests.transforms.stage import rows_of, transformed
from tests.viewer.stage import answered, append, called, failure, page_of, row, write

HOSTILE = '</pre><script>document.title="run"</script><img src=x onerror=alert(1)>'


def stage(directory: Path) -> Path:
    """A run with three groups, a failure, and metrics."""
    run = directory / "run"
    tools = (called("c", "search", q=HOSTILE), answered("c", '{"error": "' + "no" + '"}'))
    write(
        run / "rollouts.jsonl",
        row(0, 0, 1.0, *tools, "it is 4", num_turns=2),
        row(0, 1, 0.0, HOSTILE),
        row(1, 0, 0.5, "a"),
        row(1, 1, 0.5, "b"),
        row(2, 0, 1.0, "c", policy_versions=[1]),
    )
    write(run / "rollouts_failures.jsonl", failure(2, 1, message=f"/verify answered 503: {HOSTILE}"))
    metrics = [{"step": step, "reward": step / 10, "loss": 1 / step, "step_s": 1.0, "odd": 3} for step in range(1, 12)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in metrics))
    return run


ADDRESSES = (
    "/",
    "/runs?run=0",
    "/runs?run=0&details=1",
    "/files/0",
    "/files/0?text=script&sort=worst&page=2",
    "/files/0/groups",
    "/files/0/groups?group_sort=spread",
    "/files/0/groups/1",
    "/files/0/groups/f1",
    "/files/0/rollouts/1",
    "/files/0/rollouts/1?whole=row&reward_min=0",
    "/files/0/rollouts/f1",
    "/files/0/failures",
    "/files/0/compare?pick=1&pick=2",
    "/compare?a=0:1&b=0:3",
    "/versus?side=0@0&side=0@1",
    "/versus?side=0&side=0",
)


def test_every_address_answers_and_nothing_foreign_is_markup(tmp_path: Path):
    with page_of(stage(tmp_path)) as page:
        for address in ADDRESSES:
            text = page.text(address)
            assert "<script>" not in text, address
            assert "<img" not in text, address
            assert "onerror=alert(1)>" not in text, address
            assert text.startswith("<!DOCTYPE html>"), address


def test_pages_say_what_a_reader_looks_for(tmp_path: Path):
    with page_of(stage(tmp_path)) as page:
        overview = page.text("/")
        assert "run/rollouts.jsonl" in overview
        runs = page.text("/runs?run=0")
        assert "What stands out" not in runs
        assert ("1 more numbers" in runs, ">odd<" in runs, ">odd<" in page.text("/runs?run=0&details=1")) == (True, False, True)
        groups = page.text("/files/0/groups")
        assert groups.count("dead: all have 0.5") == 1
        assert "dead: one rollout with a reward" in groups
        group = page.text("/files/0/groups/3")
        assert "nothing of this group trains" in group
        rollout = page.text("/files/0/rollouts/1")
        assert "calls a tool" in rollout
        assert 'class="entry output failed"' in rollout
        failed = page.text("/files/0/rollouts/f1")
        assert "while it waited for model" in failed
        failures = page.text("/files/0/failures")
        assert re.findall(r'class="number">([0-9.]+) %', failures) == ["83.3", "16.7", "100.0"]


def test_a_reader_walks_along_what_a_filter_leaves(tmp_path: Path):
    with page_of(stage(tmp_path)) as page:
        text = page.text("/files/0/rollouts/3?reward_max=0.5")
    assert "2 of 3" in text
    assert 'href="/files/0/rollouts/2?reward_max=0.5" data-key="p"' in text
    assert 'href="/files/0/rollouts/4?reward_max=0.5" data-key="n"' in text


@pytest.mark.parametrize(
    ("address", "status", "told"),
    [
        ("/nothing", 404, "there is no page"),
        ("/files/9", 400, "there is no file 9"),
        ("/files/0/rollouts/99", 400, "no rollout at"),
        ("/files/0/rollouts/../../etc", 404, "there is no page"),
        ("/files/0?where=rewrd", 400, "did you mean"),
        ("/files/0?where=__import__('os')", 400, "can be called"),
        ("/files/0?nonsense=1", 400, "unknown key"),
        ("/files/0/compare?pick=1", 400, "tick two"),
        ("/files/0/compare?pick=1&pick=77", 400, "no rollout at"),
        ("/versus?side=0", 400, "tick two"),
        ("/versus?side=0&side=x", 400, "there is no side"),
        ("/files/0?page=99999999999999999999", 400, "less than or equal to"),
        ("/files/0/groups?page=0", 400, "greater than or equal to"),
        ("/versus?side=0@--5&side=1", 400, "there is no side"),
        (f"/versus?side={'9' * 5000}&side=1", 400, "there is no side"),
        (f"/files/0/compare?pick={'9' * 5000}&pick=1", 400, "no rollout at"),
        ("/files/0/export", 405, "Method Not Allowed"),
        ("/exports/99", 400, "make it again"),
        ("/exports/99/x.jsonl", 404, "make it again"),
        ("/runs", 400, "there is no such run"),
        ("/runs?run=5", 400, "there is no such run"),
        ("/compare?a=0:1", 400, "is no number"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, address: str, status: int, told: str):
    with page_of(stage(tmp_path)) as page:
        found, text = page.get(address)
        assert (found, told in text) == (status, True), text
        assert page.get("/")[0] == 200


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ([("to", "exe")], "there is no export"),
        ([("to", "sft"), ("reward_min", "7")], "nothing is selected"),
        ([("to", "dpo"), ("pick", "1")], "no row is left for rollouts_dpo.jsonl"),
        ([("to", "sft"), ("nonsense", "1")], "unknown key"),
    ],
)
def test_an_export_that_cannot_be_made_says_why(tmp_path: Path, form: list[tuple[str, str]], told: str):
    with page_of(stage(tmp_path)) as page:
        status, text = page.post("/files/0/export", form)
        assert (status, told in text) == (400, True), text
        assert "/tmp" not in text


def test_another_site_can_make_no_export_and_read_nothing(tmp_path: Path):
    with page_of(stage(tmp_path)) as page:
        form = [("to", "rollouts")]
        assert page.post("/files/0/export", form, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert page.post("/files/0/export", form, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})[0] == 403
        assert page.post("/files/0/export", form, **{"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_our_own_fault_is_a_page_too_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(ListPages, "failures", lambda *_: 1 / 0)
    with page_of(stage(tmp_path)) as page:
        status, text = page.get("/files/0/failures")
        assert (status, "internal error: ZeroDivisionError" in text) == (500, True)
        assert page.get("/")[0] == 200
    assert "ZeroDivisionError" in caplog.text


def test_rewards_as_large_as_floats_go_have_a_colour(tmp_path: Path):
    with page_of(write(tmp_path / "R.jsonl", row(0, 0, 1.7e308), row(0, 1, -1.7e308), row(0, 2, 0.0))) as page:
        assert re.findall('class="chip (r.)"', page.text("/files/0")) == ["r4", "r0", "r2"]


def test_lines_that_cannot_be_read_are_told_where_rollouts_are_counted(tmp_path: Path):
    with page_of(write(tmp_path / "R.jsonl", row(), b"{half\n", b"{half\n")) as page:
        assert "2 lines cannot be read" in page.text("/")
        assert re.search(r'2 <a href="/files/0\?outcome=unreadable">lines cannot be read', page.text("/files/0/failures"))


def test_rows_beyond_what_was_requested_are_told(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(0, 0), row(0, 1), row(0, 1))
    with page_of(path) as page:
        assert "How many were requested is not told" in page.text("/files/0/failures")
        version = page.text("/version")
        (tmp_path / "R_manifest.json").write_text(json.dumps({"identity": {}, "ledger": {"requested": 2}}))
        assert page.text("/version") != version
        assert "2 were requested: 1 rows are more than that" in page.text("/files/0/failures")
        (tmp_path / "R_manifest.json").write_text(json.dumps({"identity": {}, "ledger": {"requested": 30}}))
        assert "not attempted" in page.text("/files/0/failures")


def test_names_with_characters_that_are_not_seen_can_be_chosen(tmp_path: Path):
    name = "calc\u200b"
    path = write(tmp_path / "R.jsonl", row(0, 0, 1.0, called("a", name), "x"), row(0, 1))
    with page_of(path) as page:
        assert f'<option value="{name}">calc[U+200B]</option>' in page.text("/files/0")
        text = page.text(f"/files/0?tool={name}")
        assert "<b>1</b> of 2" in text
        assert f'<input type="hidden" name="tool" value="{name}">' in text


def test_a_browser_that_asks_under_another_name_is_refused(tmp_path: Path):
    with page_of(stage(tmp_path)) as page:
        assert page.get("/", host="evil.example")[0] == 403
        assert page.get("/", host="127.0.0.1.evil.example:80")[0] == 403
        assert page.get("/", host="localhost:1234")[0] == 200


def test_the_version_changes_with_the_files(tmp_path: Path):
    run = stage(tmp_path)
    with page_of(run) as page:
        first = page.text("/version")
        assert page.text("/version") == first
        append(run / "rollouts.jsonl", row(4, 0))
        second = page.text("/version")
        assert second != first
        write(run / "rollouts_failures.jsonl", failure(7, 0), failure(8, 0))
        assert page.text("/version") not in (first, second)
        assert "task 4" in page.text("/files/0/groups")


def test_a_new_file_of_a_run_shows_up(tmp_path: Path):
    run = stage(tmp_path)
    with page_of(run) as page:
        assert "later.jsonl" not in page.text("/")
        write(run / "eval" / "later.jsonl", row(0, 0))
        assert "run/eval/later.jsonl" in page.text("/")
        assert page.get("/files/1")[0] == 200


@pytest.mark.parametrize("to", ["sft", "dpo", "tasks", "response", "preference"])
def test_a_selection_is_exported_as_transform_would_write_it(tmp_path: Path, to: str):
    run = stage(tmp_path)
    selected = write(tmp_path / "selected.jsonl", *rows_of(run / "rollouts.jsonl")[:2])
    made, report = transformed(selected, to, min_reward=None)
    with page_of(run) as page:
        _, text = page.post("/files/0/export", [("to", to), ("where_group", "0 < pass_rate < 1")])
        found = re.search(r'href="(/exports/\d+/.+?)" download="(.+?)"', text)
        assert found is not None
        exported = page.text(found[1])
    assert found[2] == f"rollouts_{to}.jsonl"
    assert _without_files([json.loads(line) for line in exported.splitlines()]) == _without_files(made)
    assert f"<b>{report.rows_out}</b> rows of 2 rollouts" in text
    assert all(REASONS[reason].split("'")[0] in text for reason in report.dropped)


def _without_files(rows: list[dict]) -> list[dict]:
    """Rows tell which file they come from."""
    return [{name: value for name, value in one.items() if name != "gym_bridge"} for one in rows]


def test_ticked_rollouts_are_exported_as_they_are_or_as_a_page(tmp_path: Path):
    run = stage(tmp_path)
    with page_of(run) as page:
        _, text = page.post("/files/0/export", [("to", "rollouts"), ("pick", "4"), ("pick", "2")])
        exported = page.text(re.findall(r'href="(/exports/.+?)"', text)[0])
        assert [json.loads(line) for line in exported.splitlines()] == [rows_of(run / "rollouts.jsonl")[at] for at in (1, 3)]
        _, text = page.post("/files/0/export", [("to", "page"), ("pick", "2"), ("text", "x")])
        shared = page.text(re.findall(r'href="(/exports/.+?)"', text)[0])
    assert 'id="rollout-0-2"' in shared
    assert 'id="rollout-0-1"' not in shared
    assert "<script" not in shared


def test_a_message_of_megabytes_is_cut_until_it_is_asked_for(tmp_path: Path):
    long = "<b>&" * 1_300_000
    with page_of(write(tmp_path / "R.jsonl", row(0, 0, 1.0, long))) as page:
        short = page.text("/files/0/rollouts/1")
        assert len(short) < 300_000
        assert "5,180,000 characters more" in short
        whole = page.text("/files/0/rollouts/1?whole=text")
        assert whole.count("&lt;b&gt;&amp;") >= 1_300_000
        assert whole.count("characters more") == 1  # of the row as it stands in the file, which is asked for apart
        row_whole = page.text("/files/0/rollouts/1?whole=row")
        assert (row_whole.count("characters more"), '<details class="card" open>' in row_whole) == (1, True)
