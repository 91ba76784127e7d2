"""Our rows in NeMo Gym's own hands: its models accept them, its profile and its aggregation count them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from gym_bridge.io.rollout_reader import view_row
from gym_bridge.schemas.rollouts import RolloutKey, Row
from tests.nemo_gym.conftest import NemoGym
from tests.nemo_gym.playing import by_agent, counter, direct, numbered, scripted
from tests.nemo_gym.replay import Lines, ModelServer, prompt_of_row
from tests.rollouts.stage import called, said

pytestmark = pytest.mark.nemo_gym

VALIDATE = """
import json, sys
from nemo_gym.base_resources_server import BaseVerifyResponse
from nemo_gym.openai_utils import NeMoGymResponse, NeMoGymResponseCreateParamsNonStreaming
for line in sys.stdin:
    row = json.loads(line)
    NeMoGymResponse.model_validate(row["response"])
    NeMoGymResponseCreateParamsNonStreaming.model_validate(row["responses_create_params"])
    kept = BaseVerifyResponse.model_validate(row)
    print(kept.reward, *[item.type for item in kept.response.output])
"""
TOKEN_FIELDS = {"prompt_token_ids", "generation_token_ids", "generation_log_probs"}


def thinking_rows(nemo_gym: NemoGym) -> list[Row]:
    """A rollout with reasoning, a refused name, calls at once, and a tool's error."""
    task = nemo_gym.tasks("example_session_state_mgmt")[0]
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    calls = [called("increment_counter", {"count": "x"}), called("verify", {}, "c1"), called("increment_counter", "{", "c2")]
    lines: Lines = [[thought, said("I count"), *calls], [thought], [said("done")]]
    return direct(nemo_gym.resources["example_session_state_mgmt"], {prompt_of_row(task): lines}, numbered([task]))


def test_nemo_gyms_models_accept_every_row(nemo_gym: NemoGym, nemo_gym_venv: Path, model_server: ModelServer):
    rows = thinking_rows(nemo_gym)
    assert rows[0]["gym_bridge"]["num_tool_errors"] == 3
    for name in ("workplace_assistant", "mcqa", "example_multi_turn_gymnasium"):
        tasks = nemo_gym.tasks(name)[:2]
        rows += direct(nemo_gym.resources[name], scripted(name, tasks, right=True), numbered(tasks))
        rows += by_agent(nemo_gym.agents[name], model_server, scripted(name, tasks, right=True), numbered(tasks))
    lines = b"\n".join(map(orjson.dumps, rows))
    done = subprocess.run([str(nemo_gym_venv / "bin" / "python"), "-c", VALIDATE], input=lines, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    expected = [" ".join([str(row["reward"]), *[item["type"] for item in row["response"]["output"]]]) for row in rows]
    assert done.stdout.decode().splitlines() == expected


def test_every_item_has_a_type_and_all_or_none_of_the_token_fields(nemo_gym: NemoGym, model_server: ModelServer):
    rows = thinking_rows(nemo_gym)
    name = "example_multi_turn_gymnasium"
    tasks = nemo_gym.tasks(name)[:1]
    rows += direct(nemo_gym.resources[name], scripted(name, tasks, right=True), numbered(tasks))
    rows += by_agent(nemo_gym.agents[name], model_server, scripted(name, tasks, right=True), numbered(tasks))
    items = [item for row in rows for item in row["response"]["output"]]
    assert len(items) == 20
    assert all(isinstance(item["type"], str) for item in items)
    assert all(len(TOKEN_FIELDS & item.keys()) in (0, 3) for item in items)
    views = [view_row(row) for row in rows]
    assert [(view.reward, view.failed, view.truncated) for view in views] == [(0.0, False, False), *[(1.0, False, False)] * 2]


@pytest.fixture
def counted(nemo_gym: NemoGym) -> tuple[list[Row], list[Row]]:
    """Inputs and rollouts of two tasks, three each, of which the first earns 2 and the second 1."""
    tasks = nemo_gym.tasks("example_session_state_mgmt")[:2]
    inputs: list[Row] = []
    rows: list[Row] = []
    for repeat, right in enumerate([(True, False), (True, True), (False, False)]):
        scripts = {prompt_of_row(task): counter(task, right=one) for task, one in zip(tasks, right, strict=True)}
        planned = [(RolloutKey(number, repeat), task) for number, task in enumerate(tasks)]
        rows += direct(nemo_gym.resources["example_session_state_mgmt"], scripts, planned)
        inputs += [materialized(key, task) for key, task in planned]
    return inputs, rows


def materialized(key: RolloutKey, task: Row) -> Row:
    """A line of the materialized inputs; the profile reads the agent's name off it."""
    agent = {"type": "responses_api_agents", "name": "gym_bridge"}
    return {**task, "_ng_task_index": key.task_index, "_ng_rollout_index": key.rollout_index, "agent_ref": agent}


def test_nemo_gyms_profile_reads_our_files(counted: tuple[list[Row], list[Row]], nemo_gym_venv: Path, tmp_path: Path):
    inputs, rows = counted
    rollouts, materialized_inputs = tmp_path / "rollouts.jsonl", tmp_path / "rollouts_materialized_inputs.jsonl"
    rollouts.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    materialized_inputs.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in inputs))
    words = [f"+materialized_inputs_jsonl_fpath={materialized_inputs}", f"+rollouts_jsonl_fpath={rollouts}"]
    command = [str(nemo_gym_venv / "bin" / "ng_reward_profile"), *words]
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    profiled = [json.loads(line) for line in (tmp_path / "rollouts_reward_profiling.jsonl").read_text().splitlines()]
    assert [round(one["mean/reward"], 6) for one in profiled] == [0.666667, 0.333333]
    assert [one["num_rollouts"] for one in profiled] == [3, 3]
    assert "mean/gym_bridge" not in profiled[0]
    (agent,) = json.loads((tmp_path / "rollouts_agent_metrics.json").read_text())
    assert agent["agent_ref"] == {"name": "gym_bridge"}
    assert agent["mean/reward"] == 0.5
    assert agent["mean/total_tokens"] == 36


def test_nemo_gyms_aggregation_takes_our_rows(counted: tuple[list[Row], list[Row]], nemo_gym: NemoGym):
    _, rows = counted
    url = nemo_gym.resources["example_session_state_mgmt"]
    answer: Any = httpx.post(f"{url}/aggregate_metrics", json={"verify_responses": rows}, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["agent_metrics"]["mean/reward"] == 0.5
    assert [round(one["mean/reward"], 6) for one in answer.json()["group_level_metrics"]] == [0.666667, 0.333333]
