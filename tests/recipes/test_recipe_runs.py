"""Every recipe's tiny config run whole, on a model of random weights, and what one leaves taken by the next."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks import recipe_page
from gym_bridge.errors import ConfigError
from gym_bridge.recipes.catalogue import find_recipe, recipes
from gym_bridge.recipes.planning import plan
from gym_bridge.recipes.report import RecipeReport
from tests.api.letters import share

pytestmark = pytest.mark.slow

INVERTED = Path(__file__).with_name("inverted.py")
LETTERS = Path(__file__).parents[1] / "api" / "letters.py"
SMALL = {
    "num_train_tasks": 16,
    "num_heldout_tasks": 3,
    "attempts": 4,
    "eval_attempts": 2,
    "min_reward": 0.1,
    "validation_share": 0.3,
    "check_tasks": 2,
    "check_attempts": 3,
    "steps": 2,
    "tasks_per_step": 2,
    "group_size": 4,
    "weak_attempts": 2,
    "max_rounds": 2,
}
"""Parameters of a run that takes seconds, where a recipe has them."""
OF_ITS_OWN = {
    "mixed": (
        *(
            f"{name}={{server: '{LETTERS}:Letters', knobs: {{size: null}}, num_train_tasks: 8, weight: 1}}"
            for name in ("sums", "safety", "game")
        ),
        "teacher=${model}",
        "tasks_per_step=3",
        "check_attempts=4",
    ),
    "long_context_math": ("steps.short=1", "steps.medium=1", "steps.long=1", "eval_attempts=16", "ks=[1,16]", "knobs.kind=null"),
}
BROUGHT = {
    "dpo": {"heldout.jsonl"},
    "rlvr": {"heldout.jsonl"},
    "iterate": {"heldout.jsonl"},
    "reward_model": {"rollouts.jsonl", "pairs.train.jsonl", "pairs.validation.jsonl"},
}
"""What a recipe of the chain takes from those before it, and does not make."""
SKIPPED = [f"stages.{name}.skip=true" for name in ("demonstrations", "train", "evaluate")]
NAMES = [one.manifest.step.id for one in recipes()]


def overrides(name: str, output: Path, model: Path, *more: str, config: str = "tiny") -> list[str]:
    known = {one.name for one in find_recipe(name).manifest.parameters}
    small = [
        f"{key}={value}" for key, value in SMALL.items() if key in known and not (name == "long_context_math" and key == "steps")
    ]
    given = {"server": f"{LETTERS}:Letters", "model": model, "output": output}
    words = [*small, *(f"{key}={value}" for key, value in given.items() if key in known), *OF_ITS_OWN.get(name, ()), *more]
    while True:
        try:
            plan(find_recipe(name), config=config, overrides=words)
            return words
        except ConfigError as error:
            idle = str(error).partition(" would have no effect")
            if not idle[1]:
                raise
            words = [one for one in words if one.partition("=")[0] != idle[0]]


def run(name: str, *words: str, config: str = "tiny") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gym_bridge", "recipe", "run", name, "-c", config, "--quiet", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def ran(ending_model: Path, tmp_path_factory) -> dict[str, Path]:
    """The output of every recipe, each begun from what those before it left."""
    place = tmp_path_factory.mktemp("recipes")
    found: dict[str, Path] = {}
    for name in ("rl_prep", "sft", "dpo", "reward_model", "rlvr", "rlhf", "pipeline", "mixed", "iterate", "long_context_math"):
        brought = [
            f"{parameter}={found[before] / path}"
            for before in found
            for following in find_recipe(before).manifest.next
            if following.step == name
            for parameter, path in following.hands.items()
            if (found[before] / path).exists()  # what was brought is not made again
        ]
        found[name] = place / name
        ended = run(name, *overrides(name, place / name, ending_model, *brought))
        assert ended.returncode == 0, f"{name}: {ended.stdout}{ended.stderr}"
    return found


def test_none_is_left_out(ran: dict[str, Path]):
    assert sorted(ran) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_leaves_every_file_that_its_manifest_names(name: str, ran: dict[str, Path]):
    missing = {one.path for one in find_recipe(name).manifest.produces if not (ran[name] / one.path).exists()}
    assert missing == BROUGHT.get(name, set())


@pytest.mark.parametrize("name", NAMES)
def test_the_report_tells_every_stage_and_what_it_cost(name: str, ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran[name] / "report.json").read_text())
    assert report.recipe == name
    assert all(one.seconds > 0 and one.memory_gib > 0 for one in report.stages if not one.command.startswith("mkdir "))
    page, text = (ran[name] / "report.html").read_text(), (ran[name] / "report.md").read_text()
    assert all(one.stage in page and one.command in text for one in report.stages)


@pytest.mark.parametrize(
    ("name", "training"), [("rlvr", "train"), ("rlhf", "train"), ("pipeline", "rlvr"), ("long_context_math", "train_long")]
)
def test_reinforcement_tells_held_out_reward_drift_spread_and_length(name: str, training: str, ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran[name] / "report.json").read_text())
    wanted = {"reward", "reward_std", "validation/heldout/reward", "kl", "completion_tokens"}
    assert wanted <= report.trainings[training].metrics.keys()
    assert report.checks["check_reward"].batch.num_groups == SMALL["check_tasks"]


@pytest.mark.parametrize("name", ["sft", "dpo", "iterate", "pipeline", "rlhf"])
def test_every_evaluation_tells_spread_and_length(name: str, ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran[name] / "report.json").read_text())
    told = [policy for suite in report.suites.values() for one in suite.sets.values() for policy in one.policies.values()]
    assert told
    assert all(one.spread_within is not None and one.output_tokens for one in told)


@pytest.mark.parametrize("name", ["sft", "iterate"])
def test_a_training_without_a_reference_tells_its_drift_on_held_out_tasks(name: str, ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran[name] / "report.json").read_text())
    drifts = [one.drift["after"] for suite in report.suites.values() for one in suite.sets.values()]
    assert drifts
    assert all(one.kl is not None and one.kl.mean > 0 for one in drifts)
    assert re.search(r"KL: 0\.\d+", (ran[name] / "report.html").read_text())


def test_the_longest_mathematics_is_told_by_its_best_of_sixteen(ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran["long_context_math"] / "report.json").read_text())
    (heldout,) = report.suites["evaluate"].sets.values()
    assert all(set(one.pass_at_k) == {1, 16} for one in heldout.policies.values())


def test_rlhf_tells_the_verifier_beside_the_learned_reward(ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran["rlhf"] / "report.json").read_text())
    assert {"reward_component/learned", "reward_component/verifier"} <= report.trainings["train"].metrics.keys()
    sets = report.suites["evaluate"].sets
    assert list(sets) == ["verifier", "learned"]
    assert sets["verifier"].policies["after"].reward.mean != sets["learned"].policies["after"].reward.mean


def ran_with(name: str, config: str, output: Path, model: Path, *more: str) -> RecipeReport:
    """The report of a run with another config than tiny."""
    ended = run(name, *overrides(name, output, model, *more, config=config), config=config)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return RecipeReport.model_validate_json((output / "report.json").read_text())


def test_a_reward_model_alone_makes_its_pairs_and_tells_its_accuracy_on_held_out_ones(tmp_path: Path, ending_model: Path):
    report = ran_with("reward_model", "tiny", tmp_path, ending_model)
    assert [one.path for one in find_recipe("reward_model").manifest.produces if not (tmp_path / one.path).exists()] == []
    accuracy = report.trainings["train"].metrics["validation/held_out/accuracy"]
    assert [step for step, _ in accuracy] == [0, report.trainings["train"].steps]
    assert f"| validation/held_out/accuracy | {accuracy[0][1]:.4g} | {accuracy[-1][1]:.4g} |" in report.to_markdown()


def test_pairs_of_what_no_policy_plays_train_a_reward_model_too(tmp_path: Path, ending_model: Path):
    report = ran_with("reward_model", "robust", tmp_path, ending_model, "tried_attempts=4", "stages.tried.limit=8")
    assert {"validation/held_out/accuracy", "validation/tried/accuracy"} <= report.trainings["train"].metrics.keys()
    assert "--model tried-answers" in next(one.command for one in report.stages if one.stage == "tried")


def test_a_combined_reward_is_shaped_in_training_and_not_in_the_evaluation(tmp_path: Path, ending_model: Path):
    report = ran_with("rlvr", "shaped", tmp_path, ending_model, "combine.shaping.length={per_token: 0.01, free_tokens: 0}")
    metrics = report.trainings["train"].metrics
    assert all(shaped < right for (_, shaped), (_, right) in zip(metrics["reward"], metrics["reward_component/right"], strict=True))
    assert report.suites["evaluate"].sets["heldout"].policies["after"].reward.mean >= 0


class Judge(BaseHTTPRequestHandler):
    """A chat endpoint that judges: a tenth for each tenth of vowels."""

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        code, candidate = re.findall(r"<candidate ([0-9a-f]{16})>\n(.*?)\n?</candidate", prompt, re.DOTALL)[-1]
        verdict = f"VERDICT {code}: {round(10 * share(candidate, 'aeiou'))}"
        body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is told."""


def test_the_verdicts_of_a_judge_at_an_endpoint_are_a_reward(tmp_path: Path, ending_model: Path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as judge:
        threading.Thread(target=judge.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{judge.server_port}/v1"
        given = [f"scorer.settings.model_url={url}", "scorer.settings.mode=rubric", "ignore_broken_reward=true"]
        report = ran_with("rlhf", "judge", tmp_path, ending_model, *given)
        judge.shutdown()
    metrics = report.trainings["train"].metrics
    assert any(value > 0 for _, value in metrics["reward_component/learned"])
    assert metrics["reward"] == metrics["reward_component/learned"]  # the verifier watches with weight 0
    assert report.suites["evaluate"].sets["learned"].policies["after"].num_failed == 0


def test_the_pipeline_compares_its_stages_on_the_same_tasks(ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran["pipeline"] / "report.json").read_text())
    heldout = report.suites["evaluate"].sets["heldout"]
    assert list(heldout.policies) == ["start", "sft", "dpo", "rlvr"]
    assert list(heldout.against_baseline) == ["sft", "dpo", "rlvr"]


def test_a_page_of_results_is_made_of_a_run(ran: dict[str, Path]):
    told = recipe_page.page(ran["mixed"])
    tables = [line.split(" | ")[0].removeprefix("| ") for line in told.splitlines() if line.startswith("| ")]
    assert {"sums", "safety", "game", "start", "sft", "rlvr", "stage", "metric", "reward/sums"} <= set(tables)
    assert told.count("won, ") == 6  # three sets, two policies that come after another
    assert recipe_page.page(ran["iterate"]).startswith("| heldout | reward, 3 tasks, 6 rollouts |")


def test_several_environments_are_told_apart_in_training_and_on_held_out_tasks(ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran["mixed"] / "report.json").read_text())
    assert {"reward/sums", "validation/safety/reward", "validation/game/reward"} <= report.trainings["rlvr"].metrics.keys()
    assert set(report.checks) == {"sums_check_reward", "safety_check_reward", "game_check_reward"}
    sets = report.suites["evaluate"].sets
    assert list(sets) == ["sums", "safety", "game"]
    assert list(sets["game"].policies) == ["start", "sft", "rlvr"]


def test_rounds_begin_with_the_newest_policy_and_tell_their_gain(ran: dict[str, Path]):
    report = RecipeReport.model_validate_json((ran["iterate"] / "report.json").read_text())
    rounds = sorted({one.stage.partition("/")[0] for one in report.stages if "/" in one.stage})
    assert [note.partition(":")[0] for note in report.notes] == [one.replace("_", " ") for one in rounds]
    gains = [
        json.loads((ran["iterate"] / one / "eval" / "report.json").read_text())["sets"]["heldout"]["against_baseline"]["after"]
        for one in rounds
    ]
    assert len(rounds) == 2 or gains[0]["difference"]["low"] <= 0
    if len(rounds) == 2:
        second = next(one.command for one in report.stages if one.stage == "round_2/collect")
        assert "round_1/sft" in second


def test_the_same_command_again_runs_nothing(ran: dict[str, Path], ending_model: Path):
    before = (ran["sft"] / "recipe.jsonl").read_bytes()
    ended = run("sft", *overrides("sft", ran["sft"], ending_model))
    assert ended.returncode == 0, ended.stderr
    assert (ran["sft"] / "recipe.jsonl").read_bytes() == before


def test_a_stage_whose_output_is_gone_is_run_again(ran: dict[str, Path], ending_model: Path):
    shutil.rmtree(ran["rl_prep"] / "data")
    ended = run("rl_prep", *overrides("rl_prep", ran["rl_prep"], ending_model))
    assert ended.returncode == 0, ended.stderr
    assert (ran["rl_prep"] / "data" / "manifest.json").is_file()


def test_other_settings_in_the_same_directory_are_refused(ran: dict[str, Path], ending_model: Path):
    ended = run("sft", *overrides("sft", ran["sft"], ending_model, "stages.train.policy.lr=0.5"))
    assert ended.returncode == 2
    assert "holds another run of the recipe: train was" in ended.stderr


def test_a_reward_that_is_upside_down_stops_the_run_unless_it_is_told_to_go_on(tmp_path: Path, ending_model: Path):
    given = overrides("rlvr", tmp_path / "run", ending_model, f"server={INVERTED}")
    ended = run("rlvr", *given)
    assert ended.returncode == 1
    assert "BROKEN  good above bad: in 0% of the pairs of 2 tasks" in ended.stdout
    assert "say ignore_broken_reward=true" in ended.stderr
    assert not (tmp_path / "run" / "rlvr").exists()
    ended = run("rlvr", *given, "ignore_broken_reward=true")
    assert ended.returncode == 0, ended.stderr
    report = RecipeReport.model_validate_json((tmp_path / "run" / "report.json").read_text())
    assert report.checks["check_reward"].broken
    assert next(one.code for one in report.stages if one.stage == "check_reward") == 3


def test_a_run_without_a_warm_policy_says_so(tmp_path: Path, ending_model: Path):
    folder = shutil.copytree(find_recipe("dpo").folder, tmp_path / "dpo")
    (folder / "tiny.yaml").write_text((folder / "tiny.yaml").read_text().replace("smollm2-135m", str(ending_model)))
    words = [one for one in overrides("dpo", tmp_path / "run", ending_model) if not one.startswith("model=")]
    command = [sys.executable, "-m", "gym_bridge", "recipe", "run", str(folder), "-c", "tiny", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert f"no model= was given: this starts from {ending_model}" in ended.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_ended_ends_its_command_and_goes_on_when_it_is_called_again(
    number: signal.Signals, code: int, tmp_path: Path, ending_model: Path
):
    words = overrides("sft", tmp_path / "run", ending_model, "attempts=40", *SKIPPED)
    command = [sys.executable, "-m", "gym_bridge", "recipe", "run", "sft", "-c", "tiny", *words]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    rollouts = tmp_path / "run" / "rollouts.jsonl"
    while not (rollouts.is_file() and rollouts.stat().st_size):
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(started.pid, number)  # a terminal's Ctrl-C reaches the whole group
    _, errors = started.communicate(timeout=60)
    assert started.returncode == code, errors
    left = subprocess.run(["pgrep", "-g", str(started.pid)], capture_output=True, text=True, check=False).stdout
    assert left == ""
    kept = rollouts.read_bytes()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert rollouts.read_bytes().startswith(kept)
