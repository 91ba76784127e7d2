"""The recipe rlvr, and check-reward, against real NeMo Gym servers and agents."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gym_bridge import check_reward, run_recipe
from gym_bridge.io.jsonl import read_jsonl, write_jsonl
from gym_bridge.schemas.reward_check import CheckRewardSettings
from tests.nemo_gym.conftest import nemo_gym_serving
from tests.nemo_gym.test_train import NAME, TASK, free_port

pytestmark = pytest.mark.nemo_gym

TRIED = ["check_tasks=1", "check_attempts=2", "eval_attempts=2"]
SMALL = [
    *("steps=1", "tasks_per_step=2", "group_size=2", "max_tokens=8"),
    *("stages.train.algorithm.baseline=none", "stages.train.algorithm.scale=none"),  # its verifier gives every reply 1
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "tasks.jsonl", [TASK] * 2)
    return tmp_path / "tasks.jsonl"


def test_answers_that_its_rows_expect_are_right_to_a_real_verifier(nemo_gym_venv: Path, tiny_llama: Path, tmp_path: Path):
    model_server: Any = SimpleNamespace(url="http://127.0.0.1:9")
    with nemo_gym_serving(nemo_gym_venv, model_server, ["mcqa"], tmp_path) as served:
        write_jsonl(tmp_path / "tasks.jsonl", served.tasks("mcqa"))
        found = check_reward(
            CheckRewardSettings(
                server=served.resources["mcqa"],
                input=tmp_path / "tasks.jsonl",
                report=tmp_path / "check.json",
                model=str(tiny_llama),
                num_repeats=2,
                limit=3,
                max_output_tokens=4,
                max_attempts=1,
                min_signal=0.0,
                max_failed=1.0,  # its prompts fill the context of a tiny model
            )
        )
    assert (found.broken, found.ranked) == (False, 1.0)
    assert {one.mean_reward for one in found.known if one.kind == "good"} == {1.0}
    assert {one.mean_reward for one in found.known if one.kind != "good"} == {0.0}


def held_out(tasks: Path) -> Path:
    """The same tasks in a file of their own."""
    return Path(shutil.copy(tasks, tasks.with_name("held_out.jsonl")))


def test_a_recipe_trains_against_a_real_resource_server(nemo_gym_venv: Path, tiny_llama: Path, tasks: Path, tmp_path: Path):
    model_server: Any = SimpleNamespace(url="http://127.0.0.1:9")
    with nemo_gym_serving(nemo_gym_venv, model_server, [NAME], tmp_path) as served:
        given = [f"server={served.resources[NAME]}", f"train_tasks={tasks}", f"heldout_tasks={held_out(tasks)}"]
        report = run_recipe(
            "rl/nemo_rl/rlvr",
            config="tiny",
            overrides=[
                *SMALL,
                *TRIED,
                *given,
                f"model={tiny_llama}",
                f"output={tmp_path / 'run'}",
                "stages.check_reward.min_signal=0",
            ],
        )
    assert [one.stage for one in report.stages] == ["check_reward", "train", "evaluate"]
    assert report.trainings["train"].steps == 1
    assert report.suites["evaluate"].sets["heldout"].policies["after"].reward.mean == 1.0


def test_a_recipe_trains_on_what_a_real_agent_plays(nemo_gym_venv: Path, tiny_llama: Path, tasks: Path, tmp_path: Path):
    port = free_port()
    model_server: Any = SimpleNamespace(url=f"http://127.0.0.1:{port}")
    with nemo_gym_serving(nemo_gym_venv, model_server, [NAME], tmp_path) as served:
        given = [
            f"env={{server: null, agent_url: '{served.agents[NAME]}', policy_address: '127.0.0.1:{port}'}}",
            *(
                f"train_tasks={tasks}",
                f"heldout_tasks={held_out(tasks)}",
                "stages.check_reward.skip=true",
                "stages.evaluate.skip=true",
            ),
        ]
        report = run_recipe("rlvr", config="tiny", overrides=[*SMALL, *given, f"model={tiny_llama}", f"output={tmp_path / 'run'}"])
    assert [one.stage for one in report.stages] == ["train"]
    assert report.trainings["train"].metrics["validation/heldout/reward"][-1] == (1, 1.0)
    rows = [row for _, row in read_jsonl(tmp_path / "run" / "rlvr" / "rollouts.jsonl")]
    assert {row["reward"] for row in rows} == {1.0}
