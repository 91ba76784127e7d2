"""Datasets that Ray Data makes: byte for byte those of one process."""

import gzip
import json
from pathlib import Path

import pytest

from tests.cluster.ray_stage import Training

pytestmark = pytest.mark.ray

ROLLOUTS = Path("fixtures/nemo_gym/example_multi_step.jsonl")


def transformed(*argv: object) -> tuple[int, str, str]:
    """Of a command in a process of its own."""
    return Training(["transform", *map(str, argv)]).ended()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A directory of rollouts in pieces, one of them compressed."""
    directory = tmp_path / "shards"
    directory.mkdir()
    rows = [json.loads(line) for line in ROLLOUTS.read_text().splitlines()]
    lines = []
    for index in (0, 1):
        for row in rows:
            row |= {"reward": float(index), "_ng_rollout_index": index}
            row["response"]["output"][-1]["content"][0]["text"] += f" So it is {index}."
            lines.append(json.dumps(row).encode() + b"\n")
    for number in range(3):
        (directory / f"part-{number}.jsonl").write_bytes(b"".join(lines[number::4]))
    (directory / "part-3.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[3::4])))
    return directory


@pytest.mark.parametrize(
    "options",
    [
        ["--to", "sft", "--min-reward", "none", "--dedupe", "near"],
        ["--to", "preference", "--pairs", "all", "--split", "0.5"],
        ["--to", "tasks", "--where-group", "num_rollouts > 0"],
    ],
)
def test_the_output_of_ray_is_that_of_one_process(options: list[str], shards: Path, tmp_path: Path):
    code, out, err = transformed(shards, *options, "--output", tmp_path / "alone" / "rows.jsonl")
    found, told, said = transformed(shards, *options, "--output", tmp_path / "ray" / "rows.jsonl", "--ray", "local", "--workers", 2)
    assert (code, found) == (0, 0), err + said
    assert told.replace("/ray/", "/alone/") == out
    assert said == err
    alone, together = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "ray"))
    assert alone == together
    assert all(alone.values())


def test_a_bad_row_and_a_cluster_that_is_not_there_are_one_line(shards: Path, tmp_path: Path):
    with (shards / "part-1.jsonl").open("a") as file:
        file.write("{no row\n")
    for options, code, words in (
        (["--ray", "local", "--workers", 2], 2, "part-1.jsonl:"),
        (["--ray", "127.0.0.1:1"], 2, "--ray=127.0.0.1:1: no Ray cluster there"),
    ):
        found, out, err = transformed(shards, "--to", "sft", "--output", tmp_path / "sft.jsonl", *options)
        assert (found, out) == (code, ""), err
        assert words in err.splitlines()[-1]
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "sft.jsonl").exists()
