"""Where rollouts come from, and who reads them: packed files, stdin, many files, several processes; the dataset is the same."""

import gzip
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.blocks import Block, Source
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms import engine
from gym_bridge.transforms.engine import transform_files
from gym_bridge.transforms.format import Format, RowOptions
from gym_bridge.transforms.parallel import Processes, WorkerDiedError
from tests.transforms.stage import FORMATS, line, rollouts, transformed

RICH: dict[str, dict[str, Any]] = {
    "response": {"split": 0.4, "seed": 3, "dedupe": "exact", "where": "num_turns < 9", "flatten": "transcript"},
    "sft": {"best_of": 2, "dedupe": "near", "where_group": "num_rollouts > 1", "reward": "reward * 2 + tag", "arguments": "string"},
    "grpo": {"where": "tag >= 0", "output_field": "about.answer", "split": 0.5},
    "dpo": {"pairs": "random", "seed": 5, "max_pairs_per_task": 2, "min_margin": 0.1, "split": 0.5, "dedupe": "exact"},
    "preference": {"pairs": "all", "where_group": "0 < mean_reward"},
    "tasks": {"where_group": "pass_rate < 1", "split": 0.5},
}


def many(directory: Path, *, name: str = "rollouts.jsonl", num_tasks: int = 12) -> Path:
    """Rollouts of many tasks, some of them wrong in some way."""
    lines = []
    for task in range(num_tasks):
        about = {"about": {"answer": str(task)}, "tag": task % 3}
        for repeat in range(4):
            lines.append(line((task + repeat) % 4 / 3, f"answer {repeat % 3}", task=task, prompt=f"task {task}", **about))
        lines.append([line(None), b"\n", line(0.5, truncated=True), line(mask_sample=True)][task % 4])
    return rollouts(directory, *lines, name=name)


def written(inputs: list[Path], to: str, output: Path, **settings: Any) -> dict[str, bytes]:
    """The dataset's files and the report; `output` is their directory."""
    output.mkdir()
    settings = {"on_bad_row": "skip", "report": output / "report.json", **settings}
    transform_files(inputs, TransformSettings(to=to, output=output / "out.jsonl", **settings))
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and chosen rollouts in so small portions that a file of a few rows has many; one process reads as workers do."""
    of_engine = engine.blocks

    def small(sources: Sequence[Source], **_: Any) -> Iterator[Block]:
        found = list(of_engine(sources, size=1500, with_data=False))
        assert len(found) > 5 * len(sources)
        return iter(found)

    monkeypatch.setattr(engine, "blocks", small)
    monkeypatch.setattr(engine, "UNITS_PER_ITEM", 3)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("rich", [False, True], ids=["plain", "rich"])
def test_the_size_of_blocks_changes_nothing(to: str, rich: bool, tmp_path: Path, request: pytest.FixtureRequest):
    path, settings = many(tmp_path), RICH[to] if rich else {}
    whole = written([path], to, tmp_path / "whole", **settings)
    assert len(whole) == 2 + (2 if "split" in settings else 1)
    request.getfixturevalue("small_blocks")
    assert written([path], to, tmp_path / "small", **settings) == whole


@pytest.mark.parametrize(
    ("to", "rich"),
    [
        pytest.param(to, rich, marks=[] if rich and to in ("response", "dpo") else pytest.mark.slow)
        for to in FORMATS
        for rich in (False, True)
    ],
)
def test_two_workers_write_the_same_bytes_as_one(to: str, rich: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "WORKERS_FROM_BYTES", 0)
    monkeypatch.setattr(engine, "PART_BYTES", 2000)
    monkeypatch.setattr(engine, "UNITS_PER_ITEM", 5)
    packed, plain = tmp_path / "a.jsonl.gz", many(tmp_path, num_tasks=15)
    packed.write_bytes(gzip.compress(many(tmp_path, name="other.jsonl", num_tasks=7).read_bytes()))
    settings = RICH[to] if rich else {}
    alone = written([plain, packed], to, tmp_path / "alone", **settings)
    assert written([plain, packed], to, tmp_path / "together", workers=2, **settings) == alone


def shouted(rollout: RolloutView, options: RowOptions) -> Row | None:
    """A row of one's own; None for the rollouts of one task."""
    answer = rollout.items[-1]["content"][0]["text"]
    return None if rollout.task_index == 3 else {"shout": answer.upper(), "flatten": options.flatten}


def compared(chosen: Row, rejected: Row) -> Row:
    """A pair of one's own."""
    return {"better": chosen["answer"], "worse": rejected["answer"], "asked": chosen["prompt"]}


def sided(rollout: RolloutView, options: RowOptions) -> Row:
    """What a pair of one's own is made of."""
    return {"prompt": rollout.task, "answer": rollout.items[-1]["content"][0]["text"]}


SHOUT = Format(row=shouted, lacks="too_quiet", heeds=frozenset({"flatten"}))
COMPARE = Format(row=sided, unit="pair", pair=compared)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_format_of_ones_own_is_made_by_every_process(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "WORKERS_FROM_BYTES", 0)
    path = rollouts(tmp_path, *(line(task % 2, f"yes {task}", task=task // 2, prompt=f"p{task // 2}") for task in range(8)))
    rows, report = transformed(path, f"{__name__}:SHOUT", flatten="final", workers=workers, bare=True)
    assert rows == [{"shout": f"YES {task}", "flatten": "final"} for task in range(6)]
    assert (report.min_reward, report.dropped) == (None, {"too_quiet": 2})
    rows, report = transformed(path, f"{__name__}:COMPARE", workers=workers, bare=True)
    assert rows == [{"better": f"yes {2 * task + 1}", "worse": f"yes {2 * task}", "asked": str(task)} for task in range(4)]


def test_a_format_of_ones_own_takes_no_option_that_it_does_not_heed(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--arguments does not apply to [\w.]+:SHOUT"):
        transformed(rollouts(tmp_path, line()), f"{__name__}:SHOUT", arguments="string")


@pytest.mark.parametrize("to", ["sft", "dpo"])
def test_a_bad_row_that_a_worker_meets_is_told_as_by_one_process(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "WORKERS_FROM_BYTES", 0)
    monkeypatch.setattr(engine, "PART_BYTES", 500)
    path = rollouts(tmp_path, *[line(task=0)] * 9, line(True), *[line(task=1)] * 9, line("1.0"))
    (tmp_path / "out.jsonl").write_bytes(b"before\n")
    told = []
    for workers in (1, 2):
        with pytest.raises(DataError) as caught:
            transformed(path, to, workers=workers)
        told.append((str(caught.value), caught.value.path, caught.value.line))
    assert told[0] == told[1]
    assert told[0][1:] == (path, 10)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.jsonl", "rollouts.jsonl"]
    assert (tmp_path / "out.jsonl").read_bytes() == b"before\n"


def ended(item: int) -> int:
    """Ends its process at item 2."""
    if item == 2:
        os._exit(9)
    return item


def make_ended() -> Callable[[int], int]:
    """The function that ends its process."""
    return ended


def test_a_worker_that_dies_is_told_and_no_other_is_left():
    told = r"a worker process died: killed for want of memory \(try fewer --workers\)"
    with pytest.raises(WorkerDiedError, match=told), Processes(2) as workers:
        list(workers.ordered_map(make_ended, range(50)))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("to", FORMATS)
def test_a_packed_file_makes_the_rows_of_a_plain_one(to: str, pack: Callable[[bytes], bytes], tmp_path: Path):
    plain = many(tmp_path, num_tasks=5)
    packed = tmp_path / "rollouts.jsonl.gz"  # the name says nothing, but finds the tasks' inputs
    text = plain.read_bytes()
    packed.write_bytes(pack(text[:999]) + pack(text[999:]))
    rollouts(
        tmp_path,
        *(b'{"_ng_task_index":%d,"expected_answer":"%d"}\n' % (n, n) for n in range(5)),
        name="rollouts_materialized_inputs.jsonl",
    )
    rows, report = transformed(plain, to, bare=True)
    again, told = transformed(packed, to, bare=True)
    assert again == rows
    assert told.spooled == ([] if to in ("response", "sft") else [str(packed)])
    assert told.model_copy(update={"spooled": []}) == report
    if to == "grpo":
        assert [row["output"] for row in rows] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("to", ["sft", "dpo"])
def test_stdin_is_spooled_and_the_report_says_so(
    to: str, pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "in"
    path.write_bytes(pack(line(1.0, task=0) + line(0.0, "5", task=0)))
    spools = tmp_path / "spools"
    spools.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spools))
    with path.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        rows, report = transformed(Path("-"), to, output=tmp_path / "out.jsonl", report=tmp_path / "report.json")
    assert report.spooled == ["-"]
    assert "copied to a temporary file first: -" in report.describe()
    assert orjson.loads((tmp_path / "report.json").read_bytes())["spooled"] == ["-"]
    assert rows[0]["gym_bridge"]["source"] == ("-:1" if to == "sft" else ["-:1", "-:2"])
    assert list(spools.iterdir()) == []


def test_stdin_is_named_once_and_can_stand_beside_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = rollouts(tmp_path, line(0.0, "5"))
    (tmp_path / "in").write_bytes(line(1.0))
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        rows, _ = transformed([path, Path("-")], "dpo")
    assert rows[0]["gym_bridge"]["source"] == ["-:1", f"{path}:1"]
    with pytest.raises(ConfigError, match="named twice"):
        transformed([Path("-"), Path("-")], "sft", output=tmp_path / "out.jsonl")


def test_across_files_an_index_alone_makes_no_siblings(tmp_path: Path):
    a = rollouts(tmp_path, line(1.0, "4", task=0, prompt="2+2?"), line(1.0, "6", task=1, prompt="3+3?"), name="a.jsonl")
    b = rollouts(tmp_path, line(0.0, "7", task=0, prompt="3+3?"), line(0.0, "9", task=2, prompt="5+5?"), name="b.jsonl")
    rows, report = transformed([a, b], "dpo")
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [("3+3?", "6", "7")]
    assert rows[0]["gym_bridge"]["source"] == [f"{a}:2", f"{b}:1"]
    assert report.dropped == {"no_partner": 2}
    rows, _ = transformed([a, b], "tasks")
    assert [row["gym_bridge"]["num_rollouts"] for row in rows] == [1, 2, 1]


def test_across_files_another_agent_plays_another_task(tmp_path: Path):
    a = rollouts(tmp_path, line(1.0, agent_ref={"name": "x"}), line(0.5, "5", agent_ref={"name": "y"}), name="a.jsonl")
    b = rollouts(tmp_path, line(0.0, "3", agent_ref={"name": "x"}), name="b.jsonl")
    rows, report = transformed([a, b], "dpo")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("4", "3")]
    assert report.dropped == {"no_partner": 1}
