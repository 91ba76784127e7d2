"""A recipe's run as its user meets it: what is done again, what is refused, what the report owns up to. No model is played."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import read_jsonl, write_jsonl
from gym_bridge.recipes import running
from gym_bridge.recipes.catalogue import find_recipe
from gym_bridge.recipes.children import INTERRUPTED
from gym_bridge.recipes.commands import command_of
from gym_bridge.recipes.planning import plan
from gym_bridge.recipes.reading import digests_of
from gym_bridge.recipes.report import RecipeReport, StageReport
from gym_bridge.recipes.running import RecipeRun, recorded, run_recipe

HERE = Path(__file__).parent
KNOWN = ("teacher=known-answers", "attempts=1")
UNTRAINED = ("stages.train.skip=true", "stages.evaluate.skip=true", "stages.heldout_tasks.skip=true")


def recipe(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gym_bridge", "recipe", "run", name, "-c", "tiny", "--quiet", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def report_of(output: Path) -> RecipeReport:
    return RecipeReport.model_validate_json((output / "report.json").read_text())


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """Eight tasks, right in every second attempt."""
    place = tmp_path / "mine.jsonl"
    rows = [
        {
            "_ng_task_index": task,
            "_ng_rollout_index": attempt,
            "reward": float(attempt),
            "responses_create_params": {"input": [{"role": "user", "content": f"Say {task}"}]},
            "response": {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]}]},
        }
        for task in range(8)
        for attempt in range(2)
    ]
    write_jsonl(place, rows)
    return place


def test_a_run_whose_input_has_changed_since_is_refused(rollouts: Path, tmp_path: Path):
    given = [f"rollouts={rollouts}", f"output={tmp_path / 'run'}", *UNTRAINED]
    first = run_recipe("sft", config="tiny", overrides=given)
    assert list(first.stages[0].read) == [str(rollouts)]
    assert run_recipe("sft", config="tiny", overrides=given).stages == first.stages
    rollouts.write_text("".join(rollouts.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"mine.jsonl has changed since demonstrations read it; choose another output"):
        run_recipe("sft", config="tiny", overrides=given)


def test_models_and_servers_of_ones_own_are_read_too(tmp_path: Path):
    model, server = tmp_path / "model", tmp_path / "server.py"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"before")
    settings = {
        "server": f"{server}:Evens",
        "input": "tasks.jsonl",
        "output": str(tmp_path / "run" / "r.jsonl"),
        "model": str(model),
    }
    (tmp_path / "tasks.jsonl").touch()

    def digests() -> dict[str, str]:
        return digests_of(command, tmp_path / "run", {})

    server.write_text((HERE / "evens.py").read_text())
    command = command_of("collect", settings)
    before = digests()
    assert list(before) == [str(server), str(model)]
    (model / "model.safetensors").write_bytes(b"after")
    assert digests()[str(model)] != before[str(model)]
    assert digests()[str(server)] == before[str(server)]
    server.write_text("another = 1\n")
    assert digests()[str(server)] != before[str(server)]


def test_words_that_name_no_file_are_none(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    long = "Be brief. " * 99
    command = command_of(
        "collect", {"server": "arithmetic", "input": "t.jsonl", "output": "r.jsonl", "params": [f"instructions={long}"]}
    )
    assert digests_of(command, tmp_path / "run", {}) == {}


def test_what_comes_after_a_stage_that_is_run_again_is_run_again(tmp_path: Path):
    given = ["num_tasks=8", f"output={tmp_path / 'run'}"]
    run_recipe("rl_prep", config="tiny", overrides=given)
    (tmp_path / "run" / "blend.jsonl").unlink()
    run_recipe("rl_prep", config="tiny", overrides=given)
    lines = (tmp_path / "run" / "recipe.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["blend", "prep", "blend", "prep"]


def test_files_of_the_rounds_to_come_are_not_written_over(tmp_path: Path):
    mine = tmp_path / "round_2" / "weak.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"weak.jsonl is there, and no recipe has run in"):
        run_recipe("iterate", config="tiny", overrides=[f"output={tmp_path}", "model=smollm2-135m", "max_rounds=2"])
    assert mine.read_text() == "mine"


def test_the_report_counts_rollouts_that_failed(tmp_path: Path):
    output, server = tmp_path / "run", f"{HERE / 'ailing.py'}:Ailing"
    ended = recipe("sft", f"server={server}", *KNOWN, "num_train_tasks=16", f"output={output}", *UNTRAINED)
    assert ended.returncode == 0, ended.stderr
    told = report_of(output)
    odd = sum(int(row["expected_answer"]) % 2 for _, row in read_jsonl(output / "train.jsonl"))
    assert 0 < odd < 16
    assert told.collections["collect"].failed == {"verify_error": odd}
    assert told.notes[-1] == f"collect: {odd} of 16 rollouts failed; what follows goes by the others"
    ledger = f"16 requested = {16 - odd} completed + 0 truncated + {odd} verify_error"
    assert all(ledger in text for text in (ended.stdout, *((output / f"report.{kind}").read_text() for kind in ("md", "html"))))


def test_the_report_counts_rollouts_that_a_budget_left_out(tmp_path: Path):
    output = tmp_path / "run"
    words = (f"server={HERE / 'ailing.py'}:Slow", *KNOWN, "num_train_tasks=20", f"output={output}")
    words += ("play.concurrency=1", "stages.collect.time_budget_s=2", "stages.demonstrations.skip=true")
    ended = recipe("sft", *words, *UNTRAINED)
    assert ended.returncode == 0, ended.stderr
    left_out = report_of(output).collections["collect"].not_attempted
    assert 0 < left_out <= 20
    assert report_of(output).notes[-1] == f"collect: {left_out} of 20 rollouts were not attempted, as a budget ended"


def test_a_loss_beyond_what_is_allowed_is_told_by_the_report_and_exit_3(tmp_path: Path):
    output = tmp_path / "run"
    tried = ("policies.before.model=known-answers", "policies.after.model=tried-answers", "max_regression=0.1")
    words = [f"output={output}", *KNOWN, "num_train_tasks=8", "num_heldout_tasks=6"]
    words += ["stages.train.skip=true", *(f"stages.evaluate.{one}" for one in tried)]
    for _ in range(2):
        ended = recipe("sft", *words)
        assert ended.returncode == 3, ended.stderr
        assert re.search(r"heldout: after may have lost 0.\d+ against before, more than max_regression=0.1", ended.stdout)
        assert [one.code for one in report_of(output).stages] == [0, 0, 0, 0, 3]


def test_a_stage_costs_what_all_calls_cost_that_it_took(tmp_path: Path, monkeypatch):
    def line(command: str, seconds: float, memory_gib: float, code: int) -> StageReport:
        return StageReport(stage="train", command=command, seconds=seconds, memory_gib=memory_gib, code=code)

    write_jsonl(
        tmp_path / "recipe.jsonl",
        [one.model_dump() for one in (line("other", 50.0, 9.0, 1), line("this", 3.0, 2.0, INTERRUPTED), line("this", 4.0, 1.0, 0))],
    )
    assert recorded(tmp_path)["train"] == line("this", 7.0, 2.0, 0)

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run_command", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RecipeRun(plan(find_recipe("rl_prep"), config="tiny", overrides=[f"output={tmp_path / 'run'}"]), print).run()
    assert [(one.code, one.done) for one in recorded(tmp_path / "run").values()] == [(INTERRUPTED, False)]


def test_a_reward_that_is_upside_down_is_found_before_anything_goes_by_it(tmp_path: Path):
    words = (f"server={HERE / 'inverted.py'}", "num_train_tasks=8", f"output={tmp_path / 'run'}")
    ended = recipe("pipeline", *words)
    assert ended.returncode == 1
    assert "BROKEN  good above bad: in 0% of the pairs of 8 tasks" in ended.stdout
    assert "mend it, with another output where earlier stages went by it" in ended.stderr
    assert list(recorded(tmp_path / "run")) == ["train_tasks", "heldout_tasks", "check_answers"]
