"""`reverify` and `doctor` on the real command line, against a real resource server and a chat endpoint that adds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gym_bridge.resource_servers.process import ServerProcess


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ServerProcess("arithmetic") as running:
        yield running.url


@pytest.fixture
def rollouts(gym_bridge, chat_model, tasks: Path, server: str, tmp_path: Path) -> Path:
    """Six rollouts, all of them right."""
    path = tmp_path / "r.jsonl"
    model = ["--model", "adder", "--model-url", chat_model().url, "--model-api", "chat"]
    assert gym_bridge("collect", "--input", tasks, "--output", path, "--server", server, *model, "--quiet").code == 0
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewrite(path: Path, change: Callable[[list[dict]], list[dict]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows(path))))


def test_verifying_again_tells_which_rewards_changed_and_keeps_the_rest(gym_bridge, rollouts: Path, server: str, tmp_path: Path):
    def spoil(stored: list[dict]) -> list[dict]:
        return [{**row, "expected_answer": "-1"} if row["_ng_task_index"] < 2 else row for row in stored]

    rewrite(rollouts, spoil)
    again = tmp_path / "again.jsonl"
    argv = ["reverify", "--input", rollouts, "--output", again, "--server", server, "--force", "--json"]
    told = json.loads(gym_bridge(*argv).out)
    assert (told["num_changed"], told["num_new"], told["mean_before"], told["mean_after"]) == (2, 0, 1.0, 4 / 6)
    assert told["ledger"]["completed"] == 6
    before, after = ({row["_ng_task_index"]: row for row in rows(path)} for path in (rollouts, again))
    for index, row in after.items():
        assert row["reward"] == float(index >= 2)
        assert row["response"] == before[index]["response"]
        assert row["gym_bridge"]["num_turns"] == before[index]["gym_bridge"]["num_turns"] == 1
        assert row["gym_bridge"]["stop_reason"] == "answered"
    assert json.loads(gym_bridge(*argv).out) == told  # nothing is left to do


def test_failed_verifications_are_scored_and_other_failures_are_not(gym_bridge, rollouts: Path, server: str, tmp_path: Path):
    stored = rows(rollouts)
    lost = {**stored[0], "reward": None, "_ng_failure_class": "judge_failed", "_ng_attempt_index": 0}
    other = {**stored[1], "reward": None, "_ng_failure_class": "model_error", "_ng_attempt_index": 0}
    rewrite(rollouts, lambda stored: stored[2:])
    failures = rollouts.with_name("r_failures.jsonl")
    failures.write_text(json.dumps(lost) + "\n" + json.dumps(other) + "\n")
    again = tmp_path / "again.jsonl"
    ended = gym_bridge("reverify", "--input", rollouts, "--output", again, "--server", server, "--force", "--only", "failed")
    assert ended.code == 0, ended.err
    assert ended.out == f"{again}: 1 requested = 1 completed + 0 truncated\n1 rollouts that had no reward have one\n"
    (row,) = rows(again)
    assert (row["_ng_task_index"], row["reward"]) == (stored[0]["_ng_task_index"], 1.0)
    assert "_ng_failure_class" not in row


def test_where_no_verification_failed_there_is_nothing_to_score_and_nothing_wrong(
    gym_bridge, rollouts: Path, server: str, tmp_path
):
    again = tmp_path / "again.jsonl"
    ended = gym_bridge("reverify", "--input", rollouts, "--output", again, "--server", server, "--force", "--only", "failed")
    assert (ended.code, ended.out.splitlines()[0]) == (0, f"{again}: 0 requested = 0 completed + 0 truncated"), ended.err


def test_a_server_that_needs_a_session_is_refused_without_force(gym_bridge, rollouts: Path, server: str, tmp_path: Path):
    ended = gym_bridge("reverify", "--input", rollouts, "--output", tmp_path / "again.jsonl", "--server", server)
    assert ended.code == 2
    assert "/reverify_mode answered 'unsupported', not 'stateless'; pass --force" in ended.err
    gone = gym_bridge("reverify", "--input", rollouts, "--output", tmp_path / "b.jsonl", "--server", "http://127.0.0.1:9")
    assert (gone.code, gone.err.count("\n")) == (1, 1)
    assert "no connection to 127.0.0.1:9" in gone.err


def test_the_doctor_plays_one_rollout_and_keeps_nothing(gym_bridge, chat_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model = chat_model()
    ended = gym_bridge("doctor", "--server", "arithmetic", "--model-url", model.url, "--model-api", "chat", "--json")
    assert ended.code == 0, ended.out
    checks = json.loads(ended.out)
    assert [one["name"] for one in checks] == ["target", "seed", "model", "verify", "rollout"]
    assert checks[-1] == {"name": "rollout", "ok": True, "told": "reward 1.0 after 1 turns, 0 tool calls, answered"}
    assert model.num_calls == 1
    assert not list(tmp_path.iterdir())


def test_the_doctor_names_what_fails(gym_bridge, server: str, tasks: Path):
    gone = gym_bridge("doctor", "--server", "http://127.0.0.1:9", "--model-url", "http://127.0.0.1:9/v1")
    assert gone.code == 1
    assert gone.out.startswith("FAILED  target: http://127.0.0.1:9")
    closed = ["--model-url", "http://127.0.0.1:9/v1", "--max-attempts", 1]
    greeted = gym_bridge("doctor", "--server", server, *closed)
    assert "FAILED  seed: invalid_row: /seed_session refused the row" in greeted.out
    assert greeted.out.endswith("pass --input with a task of this server\n")
    model = gym_bridge("doctor", "--server", server, "--input", tasks, *closed)
    assert model.code == 1
    assert "FAILED  rollout: http://127.0.0.1:9/v1: gone: no connection to 127.0.0.1:9" in model.out


def test_a_server_that_asks_for_a_token_gets_it_from_the_environment(
    child, gym_bridge, chat_model, tasks: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GYM_BRIDGE_SERVER_TOKEN", "s3cret")
    address = child("serve", "arithmetic", "--host", "localhost").address()
    asked = ["--model-url", chat_model().url, "--model-api", "chat", "--input", tasks]
    assert gym_bridge("doctor", "--server", address, *asked).code == 0
    monkeypatch.delenv("GYM_BRIDGE_SERVER_TOKEN")
    refused = gym_bridge("doctor", "--server", address, "--dialect", "seed_verify", *asked)
    assert refused.code == 1
    assert "no or another bearer token" in refused.out
