"""`recipe run iterate`: more attempts on weak tasks, and an end once a round gains nothing that can be told from chance."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gym_bridge.evaluation.summary import Paired
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.recipes import running
from gym_bridge.recipes.catalogue import find_recipe
from gym_bridge.recipes.children import Ended
from gym_bridge.recipes.planning import plan
from gym_bridge.recipes.running import RecipeRun
from tests.recipes.evens import is_right

EVENS = Path(__file__).with_name("evens.py")
ATTEMPTS, WEAK_ATTEMPTS = 2, 3


def gain(low: float) -> Paired:
    """Of a round, with an interval that begins at `low`."""
    estimate = {"mean": low + 0.1, "low": low, "high": low + 0.2, "num_tasks": 9}
    return Paired.model_validate(
        {"difference": estimate, "tasks_won": 1, "tasks_lost": 0, "tasks_tied": 0, "num_tasks_unpaired": 0}
    )


def left_empty(argv, say, *, processes: int = 1, to_stderr: bool = False) -> Ended:
    """In place of a command: what it would leave is there, without a row."""
    words = ["", *argv]
    for option, word in zip(words, argv, strict=False):
        if option in ("--output", "--report"):
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            Path(word).touch()
        if word.startswith("trainer.output="):
            Path(word.partition("=")[2], "checkpoints").mkdir(parents=True)
        if word.startswith("output="):
            Path(word.partition("=")[2]).mkdir(parents=True)
            Path(word.partition("=")[2], "report.json").touch()
    return Ended(code=0, seconds=1.0, memory_gib=1.0)


@pytest.mark.parametrize(
    ("lows", "num_rounds", "last_gain"),
    [([-0.1], 1, 0), ([0.0], 1, 0), ([0.2, 0.1, -0.1], 3, 2), ([0.3, 0.2, 0.1], 3, 3)],
)
def test_rounds_end_with_the_first_whose_interval_holds_0_or_when_there_were_enough(
    lows: list[float], num_rounds: int, last_gain: int, tmp_path: Path, monkeypatch
):
    gains = iter(lows)
    monkeypatch.setattr(running, "run_command", left_empty)
    monkeypatch.setattr(running, "gain_of", lambda suite: gain(next(gains)))
    overrides = [f"output={tmp_path / 'run'}", "model=here/sft", "max_rounds=3"]
    run = RecipeRun(plan(find_recipe("iterate"), config="tiny", overrides=overrides), lambda text: None)
    stages = [stage.name for stage, _ in run.run()]
    assert [one for one in stages if one.endswith("/train")] == [f"round_{number}/train" for number in range(1, num_rounds + 1)]
    assert (len(run.notes), run.last_gain, list(gains)) == (num_rounds, last_gain, [])
    assert not [one for one in stages if one.endswith("/collect_weak")]  # of no task that is weak


def iterated(output: Path, model: Path, *overrides: str) -> list[str]:
    """Run it on tasks of which every second one is always wrong; the stages that ran."""
    small = [f"attempts={ATTEMPTS}", f"weak_attempts={WEAK_ATTEMPTS}", "num_heldout_tasks=3", "max_tokens=4", "max_rounds=3"]
    words = [f"server={EVENS}:Evens", f"model={model}", f"output={output}", *small, *overrides]
    command = [sys.executable, "-m", "gym_bridge", "recipe", "run", "iterate", "-c", "tiny", "--quiet", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [row["stage"] for _, row in read_jsonl(output / "recipe.jsonl")]


@pytest.mark.slow
def test_weak_tasks_and_no_others_are_attempted_again_and_what_they_gave_may_train(tmp_path: Path, ending_model: Path):
    stages = iterated(tmp_path / "run", ending_model, "num_train_tasks=8")
    assert [one for one in stages if one.startswith("round_2/")] == []  # the rewards of the held-out tasks never change
    place = tmp_path / "run" / "round_1"
    again = [row for _, row in read_jsonl(place / "rollouts" / "weak.jsonl")]
    assert not any(is_right(row) for row in again)
    assert sorted(Counter(row["responses_create_params"]["input"][0]["content"] for row in again).values()) == [WEAK_ATTEMPTS] * 4
    report = json.loads((place / "sft_report.json").read_text())
    assert report["rows_in"] == 8 * ATTEMPTS + 4 * WEAK_ATTEMPTS


@pytest.mark.slow
def test_a_policy_without_weak_tasks_trains_on_what_it_has(tmp_path: Path, ending_model: Path):
    tasks = [{"responses_create_params": {"input": [{"role": "user", "content": f"Say {number}"}]}} for number in range(0, 16, 2)]
    (tmp_path / "even.jsonl").write_text("".join(json.dumps(one) + "\n" for one in tasks))
    stages = iterated(tmp_path / "run", ending_model, f"train_tasks={tmp_path / 'even.jsonl'}")
    assert "round_1/train" in stages
    assert "round_1/collect_weak" not in stages
    assert (tmp_path / "run" / "round_1" / "weak.jsonl").read_bytes() == b""
