"""What `collect` asks of its tasks, how it takes over NeMo Gym's collections, and where token ids go."""

import json
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.io.inline_tokens import inline_turns
from gym_bridge.io.token_store import TokenStore
from gym_bridge.resource_servers.process import ServerProcess

LETTERS = f"{Path(__file__).parents[1] / 'api' / 'letters.py'}:Letters"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def adder(chat_model) -> list[object]:
    """Options of a chat endpoint that adds."""
    return ["--server", "arithmetic", "--model", "adder", "--model-url", chat_model().url, "--model-api", "chat", "--quiet"]


def test_parameters_seeds_and_repeats_by_agent_are_in_the_materialized_inputs(gym_bridge, adder, tasks: Path, tmp_path: Path):
    given = rows(tasks)[:2]
    given[0]["agent_ref"] = {"name": "often"}
    tasks.write_text("".join(json.dumps(row) + "\n" for row in given))
    output = tmp_path / "r.jsonl"
    more = ["--num-repeats", "often=3,_default=1", "--seed-per-repeat", "--temperature", "0.5"]
    more += ["--params", "responses_create_params.top_p=0.9", "--params", "user=me"]
    ended = gym_bridge("collect", "--input", tasks, "--output", output, *adder, *more)
    assert ended.code == 0, ended.err
    inputs = rows(tmp_path / "r_materialized_inputs.jsonl")
    assert [(row["_ng_task_index"], row["_ng_rollout_index"]) for row in inputs] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert [row["agent_ref"]["name"] for row in inputs] == ["often"] * 3 + ["gym_bridge"]
    params = [row["responses_create_params"] for row in inputs]
    assert [(one["temperature"], one["top_p"], one["user"]) for one in params] == [(0.5, 0.9, "me")] * 4
    assert [json.loads(one["metadata"]["extra_body"]) for one in params] == [{"seed": seed} for seed in (0, 1, 2, 0)]


def test_a_prompt_template_fills_tasks_that_come_without_an_input(gym_bridge, adder, tasks: Path, tmp_path: Path):
    given = rows(tasks)
    for row in given:
        row["left"], row["right"] = row["operands"]
        del row["responses_create_params"]["input"]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in given))
    template = tmp_path / "prompt.yaml"
    template.write_text("system: You add.\nuser: What is {left} + {right}?\n")
    argv = ["collect", "--input", tasks, "--output", tmp_path / "r.jsonl", *adder, "--prompt-config", template]
    ended = gym_bridge(*argv)
    assert ended.code == 0, ended.err
    for row in rows(tmp_path / "r.jsonl"):
        left, right = row["operands"]
        assert row["responses_create_params"]["input"] == [
            {"role": "system", "content": "You add."},
            {"role": "user", "content": f"What is {left} + {right}?"},
        ]
        assert row["reward"] == 1.0
    template.write_text("user: Add {left} and {right}.\n")
    changed = gym_bridge(*argv)
    assert (changed.code, "prompt.yaml" in changed.err) == (2, True)


def begun_by_nemo_gym(path: Path, *, keep: int) -> list[dict[str, Any]]:
    """Make of our finished collection what NeMo Gym's own collector leaves when it is killed: its rows, a torn one last."""
    stored = rows(path)
    for row in stored:
        del row["gym_bridge"]
    lines = [json.dumps(row) + "\n" for row in stored]
    path.write_text("".join(lines[:keep]) + lines[keep][:50])
    path.with_name(f"{path.stem}_manifest.json").unlink()
    return stored[:keep]


def test_a_collection_that_nemo_gym_began_is_adopted_and_finished(gym_bridge, adder, tasks: Path, tmp_path: Path, rollout_keys):
    output = tmp_path / "r.jsonl"
    argv = ["collect", "--input", tasks, "--output", output, *adder]
    assert gym_bridge(*argv).code == 0
    theirs = begun_by_nemo_gym(output, keep=4)
    refused = gym_bridge(*argv)
    assert refused.code == 2
    assert "pass --adopt to take over a collection that NeMo Gym began" in refused.err
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows(tasks))).replace("_ng_task_index", "old_index"))
    differs = gym_bridge("collect", "--input", other, "--output", output, *adder, "--adopt")
    assert differs.code == 2
    assert "r_materialized_inputs.jsonl:" in differs.err
    assert output.read_bytes().count(b"\n") == 4
    adopted = gym_bridge(*argv, "--adopt")
    assert adopted.code == 0, adopted.err
    assert adopted.out == f"{output}: 6 requested = 6 completed + 0 truncated; mean reward 1.0000\n"
    assert rollout_keys(output) == [(task, 0) for task in range(6)]
    assert rows(output)[:4] == theirs


def test_token_ids_stand_beside_the_rows_or_in_them(gym_bridge, tasks: Path, tiny_llama: Path, tmp_path: Path):
    model = ["--server", "arithmetic", "--model", tiny_llama, "--max-output-tokens", 5, "--quiet"]
    beside, inside = tmp_path / "beside.jsonl", tmp_path / "inside.jsonl"
    assert gym_bridge("collect", "--input", tasks, "--output", beside, *model).code == 0
    assert gym_bridge("collect", "--input", tasks, "--output", inside, *model, "--inline-token-ids").code == 0
    store = TokenStore(tmp_path / "beside.tokens")
    assert not (tmp_path / "inside.tokens").exists()
    for row in rows(inside):
        turns = store.read((row["_ng_task_index"], row["_ng_rollout_index"], 0))
        assert inline_turns(row) == turns
        assert len(turns[0].completion_ids) <= 5
        assert row["response"]["output"][-1]["generation_token_ids"] == list(turns[0].completion_ids)
    assert all("generation_token_ids" not in item for row in rows(beside) for item in row["response"]["output"])


def test_one_target_is_asked_for(gym_bridge, tasks: Path, tmp_path: Path):
    files = ["--input", tasks, "--output", tmp_path / "r.jsonl"]
    none = gym_bridge("collect", *files)
    assert (none.code, none.err) == (2, "gym-bridge: expected one of --server, --agent-url, --head-url and --gym-config\n")
    two = gym_bridge("collect", *files, "--server", "arithmetic", "--agent-url", "http://a")
    assert two.err.endswith("and --gym-config, got --agent-url and --server\n")
    head = gym_bridge("collect", *files, "--head-url", "http://127.0.0.1:9", "--server", "mine")
    assert (head.code, "127.0.0.1:9" in head.err) == (1, True)


def test_a_model_of_this_process_is_not_dealt_out(gym_bridge, tasks: Path, tmp_path: Path):
    argv = ["collect", "--input", tasks, "--output", tmp_path / "out" / "r.jsonl", "--server", "arithmetic"]
    for option in (["--workers", 2], ["--ray", "local"]):
        ended = gym_bridge(*argv, *option)
        told = f"gym-bridge: {option[0]} {option[1]}: a model in this process is played by one; give --model-url\n"
        assert (ended.code, ended.err) == (2, told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--agent-url", "http://a", "--max-turns", 1], "--max-turns: without effect where an agent of NeMo Gym plays"),
        (["--agent-url", "http://a", "--model", "x", "--device", "cpu"], "--device, --model: without effect where an agent"),
        (["--server", "arithmetic", "--header", "A: b"], "--header: without effect where the model is played in this process"),
        (["--server", "arithmetic", "--top-p", 0.5], "--top-p: without effect where the model is played in this process"),
        (
            ["--server", "arithmetic", "--model-url", "http://a", "--tokenizer", "x"],
            "--tokenizer: without effect where an endpoint",
        ),
        (["--server", "arithmetic", "--agent", "x"], "--agent needs --agent-url, --head-url or --gym-config"),
        (["--agent-url", "127.0.0.1:9001"], "--agent-url '127.0.0.1:9001': expected an address such as"),
        (["--server", "http://me:s3cret@a"], "--server holds a user and a password"),
        (["--server", "arithmetic", "--params", "a={"], "--params: "),
        (["--server", "arithmetic", "--params", "responses_create_params=5"], "expected responses_create_params.KEY=VALUE"),
        (["--server", "arithmetic", "--num-repeats", "a,b=1"], "expected a number, or agent=number"),
        (["--server", "arithmetic", "--adopt"], "there is nothing to adopt"),
        (["--server", "arithmetic", "--model-url", "http://127.0.0.1:9/v1", "--header", "X y: a"], "expected 'Name: value'"),
    ],
)
def test_what_would_have_no_effect_or_cannot_be_meant_is_refused(gym_bridge, tasks: Path, tmp_path: Path, options, told: str):
    ended = gym_bridge("collect", "--input", tasks, "--output", tmp_path / "r.jsonl", *options)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert told in ended.err
    assert "s3cret" not in ended.err


def test_a_verifier_that_never_answers_right_stops_reverify_with_exit_1(gym_bridge, tasks: Path, tmp_path: Path):
    rollouts = tmp_path / "r.jsonl"
    rollouts.write_text("".join(json.dumps({**row, "response": {"output": 7}, "reward": 1.0}) + "\n" for row in rows(tasks)))
    with ServerProcess("arithmetic") as server:
        argv = ["reverify", "--input", rollouts, "--output", tmp_path / "a.jsonl", "--server", server.url, "--force", "--quiet"]
        ended = gym_bridge(*argv)
    assert ended.code == 1
    assert "no rollout got a reward: 6 requested = 0 completed" in ended.err


def test_an_evaluation_tells_of_the_k_that_were_asked_for_and_refuses_more_than_it_plays(gym_bridge, adder, tasks, tmp_path: Path):
    output = tmp_path / "e.jsonl"
    argv = ["eval", "--input", tasks, "--output", output, *adder, "-n", 3]
    refused = gym_bridge(*argv, "-k", "1,4")
    assert (refused.code, refused.out, output.exists()) == (2, "", False)
    assert refused.err == "gym-bridge: k=4: each task has 3 attempts; raise --num-repeats, or lower k\n"
    played = gym_bridge(*argv, "-k", "3,2", "--json")
    assert played.code == 0, played.err
    found = json.loads(played.out)
    assert [*found["pass_at_k"]] == [*found["pass_hat_k"]] == [*found["best_at_k"]] == ["2", "3"]
    compared = gym_bridge("eval", "compare", output, output, "-k", "3")
    assert "pass^3" in compared.out
    assert "pass@1" not in compared.out


def test_an_evaluation_that_a_budget_ended_says_so(gym_bridge, adder, tasks: Path, tmp_path: Path):
    argv = ["eval", "--input", tasks, "--output", tmp_path / "e.jsonl", *adder, "--concurrency", 1]
    ended = gym_bridge(*argv, "--token-budget", 28)
    assert ended.code == 0, ended.err
    assert "4, in no mean: a budget ended" in ended.out
    none = gym_bridge(*argv[:3], "--output", tmp_path / "none.jsonl", *adder, "--time-budget-s", 0.001)
    assert (none.code, "no task was played" in none.err) == (1, True)


def test_what_is_known_to_be_right_is_played_as_demonstrations(gym_bridge, tmp_path: Path):
    tasks, output = tmp_path / "t.jsonl", tmp_path / "r.jsonl"
    assert gym_bridge("tasks", "calculator", "depth=2", "--num-tasks", "3", "--output", tasks).code == 0
    known = ("--server", "calculator", "--model", "known-answers", "--quiet")
    ended = gym_bridge("collect", "--input", tasks, "--output", output, *known)
    assert ended.code == 0, ended.err
    assert [(row["reward"], row["gym_bridge"]["num_tool_calls"]) for row in rows(output)] == [(1.0, 2)] * 3
    manifest = json.loads((tmp_path / "r_manifest.json").read_text())
    assert "known-answers" in json.dumps(manifest)


def test_all_that_is_known_is_played_by_turns_with_the_verifiers_reward(gym_bridge, tmp_path: Path):
    tasks, output = tmp_path / "t.jsonl", tmp_path / "r.jsonl"
    assert gym_bridge("tasks", "arithmetic", "--num-tasks", "2", "--output", tasks).code == 0
    tried = ("--server", "arithmetic", "--model", "tried-answers", "--num-repeats", 12, "--quiet")
    ended = gym_bridge("collect", "--input", tasks, "--output", output, *tried)
    assert ended.code == 0, ended.err
    played = rows(output)
    assert len({(row["_ng_task_index"], row["_ng_rollout_index"]) for row in played}) == 24
    first = {row["_ng_rollout_index"]: row for row in played if row["_ng_task_index"] == 0}
    a, b = first[0]["operands"]
    said = [first[number]["response"]["output"][-1]["content"][0]["text"] for number in range(12)]
    assert said[:3] == [f"{a} + {b} = {a + b}", f"{a} + {b} = {a + b + 1}", f"{a} + {b} = {a}"]
    assert "" in said  # nothing is an answer too
    assert said[11] == said[0]  # eleven are known: they come in a circle
    assert [first[number]["reward"] for number in range(12)] == [1.0, *[0.0] * 10, 1.0]


def test_a_task_without_a_known_answer_is_refused_before_anything_is_played(gym_bridge, tmp_path: Path):
    tasks = tmp_path / "t.jsonl"
    tasks.write_text(json.dumps({"responses_create_params": {"input": "Hello"}}) + "\n")
    known = ("--server", LETTERS, "--model", "known-answers", "--quiet")
    ended = gym_bridge("collect", "--input", tasks, "--output", tmp_path / "r.jsonl", *known)
    assert ended.code == 2
    assert "task 0 tells no right answer" in ended.err
