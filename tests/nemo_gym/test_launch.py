"""NeMo Gym's own launcher, Ray and all, started and ended by ours."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from gym_bridge.cli.main import main
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.sessions.agent import Agent
from gym_bridge.rollouts.sessions.head import read_head
from gym_bridge.rollouts.sessions.launcher import NemoGymProcess
from gym_bridge.schemas.rollouts import Row
from tests.nemo_gym.playing import numbered, play_all
from tests.nemo_gym.replay import ModelServer
from tests.rollouts.stage import called, said

pytestmark = pytest.mark.nemo_gym

NAME = "example_single_tool_call"
FOLDERS = (f"resources_servers/{NAME}", "responses_api_agents/simple_agent", "responses_api_models/openai_model")
TASK = {
    "responses_create_params": {
        "input": "what's it like in sf?",
        "tools": [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}],
    }
}


def test_nemo_gym_is_started_plays_and_is_ended(
    nemo_gym_venv: Path, model_server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in FOLDERS:  # the venvs that it would make for its servers: all are the one that it stands in
        (tmp_path / "venvs" / folder).mkdir(parents=True)
        (tmp_path / "venvs" / folder / ".venv").symlink_to(nemo_gym_venv)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    model_server.scripts = {TASK["responses_create_params"]["input"]: [[called("get_weather", {"city": "SF"})], [said("cold")]]}
    configs = [f"resources_servers/{NAME}/configs/{NAME}.yaml", "responses_api_models/openai_model/configs/openai_model.yaml"]
    words = ["+skip_venv_if_present=true", f"+uv_venv_dir={tmp_path / 'venvs'}", f"+policy_base_url={model_server.url}/v1"]
    words += ["+policy_api_key=none", "+policy_model_name=scripted"]

    async def run(head_url: str) -> list[Row]:
        http = HttpClient()
        try:
            head = await read_head(head_url, http)
            agent = Agent(url=head.address(f"{NAME}_simple_agent"), http=http, timeout_s=60)
            return await play_all(agent, numbered([TASK] * 4))
        finally:
            await http.close()

    log = tmp_path / "nemo_gym.log"
    with NemoGymProcess(configs, log=log, venv=nemo_gym_venv, overrides=words, timeout_s=120) as process:
        rows = asyncio.run(run(process.head_url))
    assert [row["reward"] for row in rows] == [1.0] * 4
    assert "The weather in SF is cold." in rows[0]["response"]["output"][1]["output"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(process.head_url, trust_env=False)


def test_collect_starts_nemo_gym_for_the_run_and_ends_it(
    nemo_gym_venv: Path, model_server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in FOLDERS:
        (tmp_path / "venvs" / folder).mkdir(parents=True)
        (tmp_path / "venvs" / folder / ".venv").symlink_to(nemo_gym_venv)
    (tmp_path / "here.yaml").write_text(f"skip_venv_if_present: true\nuv_venv_dir: {tmp_path / 'venvs'}\n")
    (tmp_path / "tasks.jsonl").write_text((json.dumps(TASK) + "\n") * 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("GYM_BRIDGE_NEMO_GYM_VENV", str(nemo_gym_venv))
    model_server.scripts = {TASK["responses_create_params"]["input"]: [[called("get_weather", {"city": "SF"})], [said("cold")]]}
    configs = [f"resources_servers/{NAME}/configs/{NAME}.yaml", "responses_api_models/openai_model/configs/openai_model.yaml"]
    argv = ["collect", "--input", "tasks.jsonl", "--output", "out/r.jsonl", "--quiet"]
    argv += [word for config in [*configs, str(tmp_path / "here.yaml")] for word in ("--gym-config", config)]
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--model-url", f"{model_server.url}/v1", "--model", "scripted"])
    assert not ended.value.code
    rows = [json.loads(line) for line in (tmp_path / "out" / "r.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [1.0] * 3
    assert {row["agent_ref"]["name"] for row in rows} == {f"{NAME}_simple_agent"}
    assert (tmp_path / "out" / "r_nemo_gym.log").stat().st_size > 0
