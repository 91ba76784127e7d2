"""The command line against real NeMo Gym: servers, agents and a head, the same tasks with the same rewards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from gym_bridge.cli.main import main
from gym_bridge.schemas.rollouts import Row
from tests.nemo_gym.conftest import NemoGym
from tests.nemo_gym.playing import scripted
from tests.nemo_gym.replay import ModelServer

pytestmark = pytest.mark.nemo_gym

NAMES = ("example_multi_step", "workplace_assistant")

Run = Callable[..., list[Row]]


@pytest.fixture
def collected(model_server: ModelServer, nemo_gym: NemoGym, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Rows of a collection by the command line; the model replays right answers, but wrong ones for each last task."""

    def run(name: str, *options: object, tasks: list[Row] | None = None) -> list[Row]:
        given = tasks or nemo_gym.tasks(name)[:3]
        model_server.scripts = scripted(name, given[:-1], right=True) | scripted(name, given[-1:], right=False)
        path, output = tmp_path / f"{name}.jsonl", tmp_path / f"{len(list(tmp_path.iterdir()))}" / "r.jsonl"
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in given))
        with pytest.raises(SystemExit) as ended:
            main(["collect", "--input", str(path), "--output", str(output), "--quiet", "--num-repeats", "2", *map(str, options)])
        assert not ended.value.code, capsys.readouterr().err
        return sorted(map(json.loads, output.read_text().splitlines()), key=_key)

    return run


def _key(row: Row) -> tuple[int, int]:
    return row["_ng_task_index"], row["_ng_rollout_index"]


def rewards(rows: list[Row]) -> dict[tuple[int, int], float]:
    return {_key(row): row["reward"] for row in rows}


@pytest.mark.parametrize("name", NAMES)
def test_direct_agent_and_head_give_the_same_rewards(name: str, collected: Run, nemo_gym: NemoGym, model_server: ModelServer):
    model = ["--model-url", f"{model_server.url}/v1", "--model", "scripted", "--max-turns", 30]
    direct = collected(name, "--server", nemo_gym.resources[name], *model)
    assert len(direct) == 6
    assert {reward for key, reward in rewards(direct).items() if key[0] < 2} == {1.0}
    assert {reward for key, reward in rewards(direct).items() if key[0] == 2} == {0.0}
    several = collected(name, "--server", nemo_gym.resources[name], *model, "--workers", 2)
    agent = collected(name, "--agent-url", nemo_gym.agents[name])
    agents = agent_names(nemo_gym)
    head = collected(name, "--head-url", nemo_gym.head, "--agent", agents[nemo_gym.agents[name]])
    by_name = collected(name, "--head-url", nemo_gym.head, "--server", name, *model)
    for rows in (several, agent, head, by_name):
        assert rewards(rows) == rewards(direct)
    assert {row["agent_ref"]["name"] for row in head} == {agents[nemo_gym.agents[name]]}
    for theirs, ours in zip(agent, direct, strict=True):
        assert _calls(theirs) == _calls(ours)
        assert theirs["gym_bridge"]["num_tool_calls"] == ours["gym_bridge"]["num_tool_calls"] > 0


def test_rows_of_two_agents_in_one_file_are_routed_by_their_agent_ref(
    collected: Run, nemo_gym: NemoGym, model_server: ModelServer, tmp_path: Path
):
    names = agent_names(nemo_gym)
    tasks: list[Row] = []
    scripts: dict[str, Any] = {}
    for name in NAMES:
        own = nemo_gym.tasks(name)[:2]
        scripts |= scripted(name, own, right=True)
        tasks += [{**row, "agent_ref": {"name": names[nemo_gym.agents[name]]}} for row in own]
    path, output = tmp_path / "both.jsonl", tmp_path / "both" / "r.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in tasks))
    model_server.scripts = scripts
    repeats = f"{names[nemo_gym.agents[NAMES[0]]]}=2,_default=1"
    with pytest.raises(SystemExit) as ended:
        files = ["--input", str(path), "--output", str(output)]
        main(["collect", *files, "--quiet", "--head-url", nemo_gym.head, "--num-repeats", repeats])
    assert not ended.value.code
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted((*_key(row), row["reward"]) for row in rows) == [
        (0, 0, 1.0), (0, 1, 1.0), (1, 0, 1.0), (1, 1, 1.0), (2, 0, 1.0), (3, 0, 1.0),
    ]  # fmt: skip
    by_task = {row["_ng_task_index"]: row["agent_ref"]["name"] for row in rows}
    assert [by_task[index] for index in range(4)] == [names[nemo_gym.agents[NAMES[index // 2]]] for index in range(4)]


def agent_names(nemo_gym: NemoGym) -> dict[str, str]:
    """Names of the agents, by their addresses, as the head tells them."""
    import httpx
    import yaml

    config = yaml.safe_load(httpx.get(f"{nemo_gym.head}/global_config_dict_yaml", trust_env=False).json())
    found = {}
    for name, instance in config.items():
        if isinstance(instance, dict) and "responses_api_agents" in instance:
            (body,) = instance["responses_api_agents"].values()
            found[f"http://127.0.0.1:{body['port']}"] = name
    return found


def _calls(row: Row) -> list[tuple[str, str]]:
    return [(item["name"], item["arguments"]) for item in row["response"]["output"] if item["type"] == "function_call"]
