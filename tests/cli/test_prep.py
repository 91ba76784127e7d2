"""`gym-bridge prep`: placeholders resolved, every row checked, split, sharded, accounted for, resumed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

AGENT = {"type": "responses_api_agents", "name": "math_agent"}
DAPO = "nano_v3_sft_profiled_dapo17k"


def task(question: str, **more: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": [{"role": "user", "content": question}]}, "agent_ref": AGENT} | more


def placeholder(row: Any, template: Any = None, dataset: str = DAPO) -> dict[str, Any]:
    return {"dataset": dataset, "agent_ref": AGENT, "uuid": "u", "_hf_placeholder": {"row": row, "question_template": template}}


def source_row(question: Any, answer: Any = "7") -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question}], "reward_model": {"ground_truth": answer}, "data_source": "x"}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    return [json.loads(line) for line in data.splitlines()]


def manifest(output: Path) -> dict[str, Any]:
    return json.loads((output / "manifest.json").read_text())


def questions(path: Path) -> list[str]:
    return [row["responses_create_params"]["input"][0]["content"] for row in rows_of(path)]


def test_rows_are_sharded_in_order_with_counts_and_digests(gym_bridge, tmp_path):
    tasks = write(tmp_path / "tasks.jsonl", *(task(f"q{number}", id=number) for number in range(7)))
    ended = gym_bridge("prep", tasks, "--num-shards", 3, "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    shards = manifest(tmp_path / "out")["splits"]["train"]["shards"]
    assert [(shard["path"], shard["rows"]) for shard in shards] == [
        ("train/shard-00000-of-00003.jsonl", 3),
        ("train/shard-00001-of-00003.jsonl", 2),
        ("train/shard-00002-of-00003.jsonl", 2),
    ]
    files = [tmp_path / "out" / shard["path"] for shard in shards]
    assert b"".join(file.read_bytes() for file in files) == tasks.read_bytes()
    for shard, file in zip(shards, files, strict=True):
        assert shard["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert shard["bytes"] == file.stat().st_size
    found = manifest(tmp_path / "out")
    assert (found["complete"], found["rows_in"], found["kind"], found["bad_rows"]) == (True, 7, "tasks", [])
    assert found["inputs"] == [{"path": str(tasks), "split": "train", "sha256": hashlib.sha256(tasks.read_bytes()).hexdigest()}]


def test_there_are_no_more_shards_than_rows(gym_bridge, tmp_path):
    tasks = write(tmp_path / "tasks.jsonl", task("q0"), task("q1"))
    gym_bridge("prep", tasks, "--num-shards", 5, "--output", tmp_path / "out")
    assert [questions(file) for file in sorted((tmp_path / "out" / "train").iterdir())] == [["q0"], ["q1"]]


def test_zstd_shards_hold_the_same_rows(gym_bridge, tmp_path):
    tasks = write(tmp_path / "tasks.jsonl", *(task(f"q{number}") for number in range(4)))
    gym_bridge("prep", tasks, "--num-shards", 2, "--compression", "zstd", "--output", tmp_path / "out")
    files = sorted((tmp_path / "out" / "train").iterdir())
    assert [file.name for file in files] == ["shard-00000-of-00002.jsonl.zst", "shard-00001-of-00002.jsonl.zst"]
    assert [questions(file) for file in files] == [["q0", "q1"], ["q2", "q3"]]


def test_two_runs_write_the_same_bytes(gym_bridge, tmp_path):
    tasks = write(tmp_path / "tasks.jsonl", *(task(f"q{number}") for number in range(9)))
    for name in ("a", "b"):
        gym_bridge("prep", tasks, "--split", 0.4, "--compression", "zstd", "--output", tmp_path / name)
    files = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*")) for name in ("a", "b")]
    assert files[0] == files[1]
    assert len(files[0]) == 3
    for path in files[0]:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_a_split_keeps_a_prompt_on_one_side_and_added_rows_move_none(gym_bridge, tmp_path):
    few = [task(f"q{number % 10}", id=number) for number in range(20)]
    more = [*few, *(task(f"r{number}") for number in range(30))]
    sides = []
    for name, rows in (("few", few), ("more", more)):
        tasks = write(tmp_path / f"{name}.jsonl", *rows)
        gym_bridge("prep", tasks, "--split", 0.3, "--output", tmp_path / name)
        sides.append({split: set(questions(next((tmp_path / name / split).iterdir()))) for split in ("train", "validation")})
    assert sides[0]["train"] & sides[0]["validation"] == set()
    assert sides[0]["validation"] == {one for one in sides[1]["validation"] if one.startswith("q")}
    assert 0 < len(sides[0]["validation"]) < 10


def test_files_named_for_splits_and_max_rows_of_each(gym_bridge, tmp_path):
    train = write(tmp_path / "a.jsonl", task("a0"), task("a1"), task("a2"))
    held = write(tmp_path / "b.jsonl", task("b0"))
    ended = gym_bridge("prep", f"train={train}", f"validation={held}", "--max-rows", 2, "--output", tmp_path / "out", "--json")
    found = json.loads(ended.out)
    assert {split: one["rows"] for split, one in found["splits"].items()} == {"train": 2, "validation": 1}
    assert (found["rows_in"], found["beyond_max_rows"]) == (4, 1)


def test_rows_without_an_agent_get_the_one_named(gym_bridge, tmp_path):
    bare = {"responses_create_params": {"input": "3+3?"}, "id": 1}
    tasks = write(tmp_path / "tasks.jsonl", task("q0"), bare)
    assert gym_bridge("prep", tasks, "--agent", "calculator_agent", "--output", tmp_path / "out").code == 0
    assert rows_of(tmp_path / "out" / "train" / "shard-00000-of-00001.jsonl") == [
        task("q0"),
        bare | {"agent_ref": {"type": "responses_api_agents", "name": "calculator_agent"}},
    ]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "directory"])
def test_placeholders_are_filled_from_local_files(gym_bridge, tmp_path, form: str):
    rows = [source_row(f"Q{number}", str(number)) for number in range(5)]
    if form == "jsonl":
        place = write(tmp_path / "dapo.jsonl", *rows)
    elif form == "parquet":
        place = tmp_path / "dapo.parquet"
        pl.DataFrame(rows).write_parquet(place)
    else:  # rows are counted on through the files of the split; those of another split are none of them
        place = tmp_path / "dapo"
        (place / "data").mkdir(parents=True)
        pl.DataFrame(rows[:3]).write_parquet(place / "data" / "train-00000-of-00002.parquet")
        pl.DataFrame(rows[3:]).write_parquet(place / "data" / "train-00001-of-00002.parquet")
        pl.DataFrame([source_row("wrong")]).write_parquet(place / "data" / "test-00000-of-00001.parquet")
    blend = write(
        tmp_path / "blend.jsonl",
        placeholder(4, {"prefix": "Solve: ", "suffix": " Box it."}),
        task("plain"),
        placeholder(0, "Think. {question} Answer {x}."),
        placeholder(3),
    )
    ended = gym_bridge("prep", blend, "--source", f"{DAPO}={place}", "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    file = tmp_path / "out" / "train" / "shard-00000-of-00001.jsonl"
    assert questions(file) == ["Solve: Q4 Box it.", "plain", "Think. Q0 Answer {x}.", "Q3"]
    assert rows_of(file)[0] == {
        "dataset": DAPO,
        "agent_ref": AGENT,
        "uuid": "u",
        "question": "Solve: Q4 Box it.",
        "expected_answer": "4",
        "responses_create_params": {"input": [{"role": "user", "content": "Solve: Q4 Box it."}]},
    }
    assert manifest(tmp_path / "out")["placeholders"] == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (placeholder(9), f"{DAPO} has no row 9"),
        (placeholder(None), "_hf_placeholder has no 'row'"),
        (placeholder(-1), "_hf_placeholder has no 'row'"),
        (placeholder(0, "no place for it"), "question_template is neither a text with {question}"),
        (placeholder(1), f"the question of {DAPO}[1] is NoneType; expected a text"),
        (placeholder(2), f"{DAPO}[2] has no reference answer"),
        ({**placeholder(0), "agent_ref": None}, "no agent_ref.name"),
        ({"responses_create_params": {"tools": []}, "agent_ref": AGENT}, "responses_create_params.input is neither"),
        ({"responses_create_params": {"input": "x"}}, "no agent_ref.name"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "a row of kind dpo among tasks rows"),
        (task("x", response={}, reward=1.0), "neither a task row nor a row that NeMo RL trains on"),
    ],
)
def test_a_bad_row_stops_the_run_or_is_left_out_and_listed(gym_bridge, tmp_path, row: dict[str, Any], message: str):
    source = write(tmp_path / "dapo.jsonl", source_row("Q0"), source_row(None), source_row("Q2", None))
    blend = write(tmp_path / "blend.jsonl", task("good"), row)
    words = ["prep", blend, "--source", f"{DAPO}={source}", "--output", tmp_path / "out"]
    ended = gym_bridge(*words)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"blend.jsonl:2: {message}" in ended.err
    assert not (tmp_path / "out").exists()
    skipped = gym_bridge(*words, "--on-bad-row", "skip")
    assert skipped.code == 0, skipped.err
    (listed,) = manifest(tmp_path / "out")["bad_rows"]
    assert listed.startswith(f"{blend}:2: ")
    assert questions(tmp_path / "out" / "train" / "shard-00000-of-00001.jsonl") == ["good"]


def test_every_bad_row_is_named_at_once(gym_bridge, tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("{torn\n" + json.dumps(task("good")) + '\n[1]\n{"a": 1}\n')
    ended = gym_bridge("prep", tasks, "--output", tmp_path / "out")
    for line in (1, 3, 4):
        assert f"tasks.jsonl:{line}: " in ended.err
    assert "tasks.jsonl:2: " not in ended.err


def test_a_stopped_run_goes_on_and_right_shards_are_not_written_again(gym_bridge, tmp_path):
    tasks = write(tmp_path / "tasks.jsonl", *(task(f"q{number}") for number in range(6)))
    words = ["prep", tasks, "--num-shards", 3, "--output", tmp_path / "out"]
    gym_bridge(*words)
    files = sorted((tmp_path / "out" / "train").iterdir())
    whole = [file.read_bytes() for file in files]
    before = manifest(tmp_path / "out")
    stopped = {**before, "complete": False}  # as after a kill within the second shard
    stopped["splits"]["train"]["shards"] = before["splits"]["train"]["shards"][:1]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(stopped))
    files[1].write_bytes(b"half")
    files[2].unlink()
    kept = files[0].stat().st_mtime_ns
    assert gym_bridge(*words).code == 0
    assert [file.read_bytes() for file in files] == whole
    assert files[0].stat().st_mtime_ns == kept
    assert manifest(tmp_path / "out")["complete"]
    assert [shard["rows"] for shard in manifest(tmp_path / "out")["splits"]["train"]["shards"]] == [2, 2, 2]


def test_a_shard_that_was_changed_is_written_again(gym_bridge, tmp_path):
    tasks = write(tmp_path / "tasks.jsonl", task("q0"), task("q1"))
    words = ["prep", tasks, "--num-shards", 2, "--output", tmp_path / "out"]
    gym_bridge(*words)
    files = sorted((tmp_path / "out" / "train").iterdir())
    whole, kept = files[1].read_bytes(), files[0].stat().st_mtime_ns
    files[1].write_bytes(whole[:-1])
    gym_bridge(*words)
    assert files[1].read_bytes() == whole
    assert files[0].stat().st_mtime_ns == kept


def test_the_output_of_another_run_is_left_alone(gym_bridge, tmp_path):
    tasks = write(tmp_path / "tasks.jsonl", task("q0"), task("q1"))
    gym_bridge("prep", tasks, "--output", tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    ended = gym_bridge("prep", tasks, "--num-shards", 2, "--output", tmp_path / "out")
    assert ended.code == 2
    assert "holds the shards of other inputs or settings" in ended.err
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    other = write(tmp_path / "other" / "notes.txt", "mine").parent
    assert "holds other files and no manifest.json" in gym_bridge("prep", tasks, "--output", other).err


def test_a_full_disk_leaves_no_part_of_a_shard(gym_bridge, tmp_path, tiny_disk):
    tasks = write(tmp_path / "tasks.jsonl", *(task("x" * 20_000, id=number) for number in range(4)))
    ended = gym_bridge("prep", tasks, "--num-shards", 4, "--output", tiny_disk / "out")
    assert ended.code == 2
    assert "No space left on device" in ended.err
    left = sorted((tiny_disk / "out" / "train").iterdir())
    assert [rows_of(path) for path in left] == [[task("x" * 20_000, id=number)] for number in range(len(left))]
    assert not any(path.name.startswith(".") for path in left)


def test_other_datasets_are_sharded_too(gym_bridge, tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", *({"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(3)))
    gym_bridge("prep", pairs, "--output", tmp_path / "out")
    assert manifest(tmp_path / "out")["kind"] == "dpo"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", 0.000001], "--split 1e-06 leaves no row for validation: the prompts are few"),
        (["--source", "nothing"], "--source 'nothing': expected DATASET=PATH"),
        (["--source", f"{DAPO}=/nowhere/x.parquet"], "no .jsonl or .parquet file"),
        (["tasks.jsonl"], "an input file is named twice"),
        (["validation=more.jsonl", "--split", 0.5], "--split takes validation rows out of train, but a validation file is given"),
        (["--split", 1.5], "split=1.5: Input should be less than 1"),
        (["none.jsonl"], "none.jsonl: No such file or directory"),
        (["validation=empty.jsonl"], "empty.jsonl: no good row there for validation; expected one JSON object a line"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(gym_bridge, tmp_path, monkeypatch, more: list[Any], message: str):
    monkeypatch.chdir(tmp_path)
    write(Path("tasks.jsonl"), task("q0"), task("q1"))
    write(Path("more.jsonl"), task("q2"))
    write(Path("empty.jsonl"))
    ended = gym_bridge("prep", "tasks.jsonl", *more, "--output", "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert message in ended.err


@pytest.mark.parametrize("options", [[], ["--split", 0.5], ["--on-bad-row", "skip"]])
def test_a_file_without_a_row_is_refused_and_nothing_is_written(gym_bridge, tmp_path, options: list[Any]):
    ended = gym_bridge("prep", write(tmp_path / "empty.jsonl"), *options, "--output", tmp_path / "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert "empty.jsonl: no good row there for train" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_nobody_knows_is_asked_for(gym_bridge, tmp_path):
    blend = write(tmp_path / "blend.jsonl", placeholder(0, dataset="skywork"))
    ended = gym_bridge("prep", blend, "--output", tmp_path / "out")
    assert "placeholders name the dataset 'skywork'; say where it is with --source skywork=PATH" in ended.err


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line_that_names_the_way_out(tmp_path):
    blend = write(tmp_path / "blend.jsonl", placeholder(0))
    words = [sys.executable, "-m", "gym_bridge", "prep", str(blend), "--output", str(tmp_path / "out")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "BytedTsinghua-SIA/DAPO-Math-17k cannot be fetched from the Hugging Face hub" in ended.stderr
    assert "name a local copy with --source DATASET=PATH" in ended.stderr


def test_a_missing_datasets_package_names_its_extra(gym_bridge, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    blend = write(tmp_path / "blend.jsonl", placeholder(0))
    ended = gym_bridge("prep", blend, "--output", tmp_path / "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "needs the 'hub' extra: pip install 'gym-bridge[hub]'" in ended.err
