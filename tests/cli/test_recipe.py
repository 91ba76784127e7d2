"""`gym-bridge recipe`: what is printed. What is run is tested in tests/recipes."""

import json


def test_a_dry_run_prints_a_script_or_its_stages_as_json(gym_bridge):
    script = gym_bridge("recipe", "run", "iterate", "-c", "tiny", "--dry-run")
    stages = json.loads(gym_bridge("recipe", "run", "iterate", "-c", "tiny", "--dry-run", "--json").out)
    assert [one["stage"] for one in stages][:3] == ["train_tasks", "heldout_tasks", "round_1/collect"]
    assert [one["command"] for one in stages] == [line for line in script.out.splitlines() if not line.startswith("#")]


def test_recipes_and_their_configs_are_listed_and_told(gym_bridge):
    listed = json.loads(gym_bridge("recipe", "list", "--json").out)
    assert {"tiny", "default"} <= set.intersection(*(set(one["configs"]) for one in listed))
    ids = [one["id"] for one in listed]
    assert ids.index("sft") < ids.index("rlvr") < ids.index("pipeline")
    shown = gym_bridge("recipe", "show", "rl/nemo_rl/dpo")
    assert shown.out.startswith("dpo: ")
    assert json.loads(gym_bridge("recipe", "show", "dpo", "--json").out)["step"]["id"] == "dpo"


def test_an_unknown_name_is_told_with_the_nearest(gym_bridge):
    ended = gym_bridge("recipe", "run", "rlvrr", "-c", "tiny")
    assert (ended.code, "did you mean 'rlvr'" in ended.err) == (2, True)
    ended = gym_bridge("recipe", "run", "rlvr", "-c", "tinny")
    assert (ended.code, "'tiny'" in ended.err) == (2, True)
