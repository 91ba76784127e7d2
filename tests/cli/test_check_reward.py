"""`gym-bridge check-reward` against real servers: right answers are known, wrong ones told apart, and nothing fools them."""

import json
import shutil
from pathlib import Path

import pytest

from gym_bridge.evaluation.reward_check import RewardCheck

INVERTED = Path(__file__).parents[1] / "recipes" / "inverted.py"
KNOBS = {"arithmetic": (), "calculator": ("depth=2",)}
SLOW_KNOBS = {
    "code": ("kind=generate",),
    "grid_world": (),
    "math": (),
    "multiple_choice": (),
    "number_game": ("size=100",),
    "office": (),
    "reasoning": ("kind=chain_sum",),
    "refusal": (),
}


@pytest.fixture(scope="module")
def roomy(tiny_llama: Path, tmp_path_factory) -> Path:
    """The tiny model with room for prompts that describe fifteen tools."""
    place = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("roomy") / "model")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    return place


def checked(gym_bridge, tmp_path: Path, model: Path, server: str, *words: str, knobs: tuple[str, ...] = ()):
    tasks = tmp_path / "tasks.jsonl"
    assert gym_bridge("tasks", server, *knobs, "--num-tasks", "3", "--output", tasks).code == 0
    where = ("--input", tasks, "--server", server, "--report", tmp_path / "check.json", "--model", model)
    small = ("--limit", "2", "--num-repeats", "2", "--max-output-tokens", "4", "--min-signal", "0")
    return gym_bridge("check-reward", *where, *small, *words)


def says_what_is_right(gym_bridge, tmp_path: Path, model: Path, server: str, knobs: tuple[str, ...]) -> None:
    ended = checked(gym_bridge, tmp_path, model, server, knobs=knobs)
    assert ended.code == 0, ended.out + ended.err
    found = RewardCheck.model_validate_json((tmp_path / "check.json").read_text())
    assert found.ranked == 1.0
    assert {one.mean_reward for one in found.known if one.kind == "good"} == {1.0}
    assert {one.mean_reward for one in found.known if one.kind != "good"} == {0.0}
    assert found.batch.num_rollouts == 4


@pytest.mark.parametrize("server", KNOBS)
def test_our_servers_tell_right_from_wrong(gym_bridge, tmp_path: Path, roomy: Path, server: str):
    says_what_is_right(gym_bridge, tmp_path, roomy, server, KNOBS[server])


@pytest.mark.slow
@pytest.mark.parametrize("server", SLOW_KNOBS)
def test_our_other_servers_do_too(gym_bridge, tmp_path: Path, roomy: Path, server: str):
    says_what_is_right(gym_bridge, tmp_path, roomy, server, SLOW_KNOBS[server])


def test_a_combined_server_knows_the_answers_of_the_part_that_makes_the_tasks(gym_bridge, tmp_path: Path, tiny_llama: Path):
    file = tmp_path / "both.yaml"
    parts = "[{name: other, server: " + str(INVERTED) + ", weight: 0}, {name: right, server: arithmetic}]"
    file.write_text(f"server: combine\nsettings: {{tasks_from: right, parts: {parts}}}\n")
    says_what_is_right(gym_bridge, tmp_path, tiny_llama, str(file), ())


def test_a_broken_reward_is_exit_code_3_and_told_as_json_too(gym_bridge, tmp_path: Path, tiny_llama: Path):
    ended = checked(gym_bridge, tmp_path, tiny_llama, str(INVERTED), "--json", "--quiet")
    assert ended.code == 3
    told = json.loads(ended.out)
    assert told == json.loads((tmp_path / "check.json").read_text())
    assert told["broken"]
    assert told["ranked"] == 0.0
    assert (tmp_path / "check_rollouts.jsonl").is_file()


def test_known_answers_of_the_row_are_tried(gym_bridge, tmp_path: Path, tiny_llama: Path):
    tasks = tmp_path / "mine.jsonl"
    asked = {"responses_create_params": {"input": [{"role": "user", "content": "What is 11 + 12?"}]}}
    known = {"good": ["23"], "bad": ["24", "no idea"]}
    tasks.write_text(json.dumps({**asked, "operands": [11, 12], "expected_answer": "23", "known_answers": known}) + "\n")
    small = ("--num-repeats", "2", "--max-output-tokens", "4", "--min-signal", "0", "--model", tiny_llama)
    ended = gym_bridge("check-reward", "--input", tasks, "--server", "arithmetic", "--report", tmp_path / "c.json", *small)
    assert ended.code == 0, ended.err
    found = RewardCheck.model_validate_json((tmp_path / "c.json").read_text())
    assert [one.about for one in found.known][:3] == [
        "good answer 1 of the task",
        "bad answer 1 of the task",
        "bad answer 2 of the task",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--input", "absent.jsonl", "--server", "arithmetic", "--report", "r.json"), "absent.jsonl"),
        (("--input", "x.jsonl", "--report", "r.json"), "expected one of --server"),
        (("--input", "x.jsonl", "--server", "arithmetic", "--report", "r.json", "--min-signal", "2"), "min_signal"),
        (("--input", "x.jsonl", "--server", "arithmetic"), "--report"),
    ],
)
def test_a_users_mistake_is_one_line(gym_bridge, words: tuple[str, ...], told: str):
    ended = gym_bridge("check-reward", *words)
    assert ended.code == 2
    assert told in ended.err
    assert ended.err.strip().count("\n") <= 3


def test_a_policy_of_which_every_rollout_fails_is_told_with_what_else_was_found(gym_bridge, tmp_path: Path, tiny_llama: Path):
    ended = checked(
        gym_bridge, tmp_path, tiny_llama, "calculator", "--max-attempts", "1", "--quiet"
    )  # prompts of 2,000 tokens, room for 512
    assert ended.code == 3
    found = RewardCheck.model_validate_json((tmp_path / "check.json").read_text())
    assert (found.ranked, found.batch.num_rollouts, found.batch.num_failed) == (1.0, 0, 4)
    assert "BROKEN  rollouts succeed: 4 of 4 failed" in ended.out
