"""NeMo Gym's agents play the policy that trains: its endpoint is their model, and every token they bring back is one it sampled."""

import asyncio
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gym_bridge import train
from gym_bridge.api.targets import Target, environment_of
from gym_bridge.api.training_target import open_training_target
from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.io.jsonl import read_jsonl, write_jsonl
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import FixedConcurrency
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.rollouts.players import LocalPlayer
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import Group, Row
from gym_bridge.schemas.seams import ModelEndpoint
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.tokens.chatml import ChatMLRenderer
from gym_bridge.tokens.trajectory import build_trajectory
from tests.nemo_gym.conftest import nemo_gym_serving
from tests.nemo_gym.replay import ModelServer
from tests.rollouts.test_sampled import ScriptedSampler, renderer, tool_call  # noqa: F401
from tests.tiny_models import SIZES

pytestmark = pytest.mark.nemo_gym

NAME = "example_single_tool_call"
CALL = tool_call("get_weather", '{"city":  "SF"}')
TASK = {
    "responses_create_params": {
        "input": "what's it like in sf?",
        "tools": [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}],
    }
}
CHAINS = {
    "openai_model": "responses_api_models/openai_model/configs/openai_model.yaml",
    "vllm_model": "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml",
    "vllm_model without token ids": "responses_api_models/vllm_model/configs/vllm_model.yaml",
}


def settings_of(**env: Any) -> GRPOSettings:
    given = {"data": {"train": "tasks.jsonl"}, "env": {"max_attempts": 1, **env}, "trainer": {"seed": 11}}
    return GRPOSettings.model_validate(given)


def played(target: Target, settings: GRPOSettings, tasks: Sequence[Row], endpoint: ModelEndpoint | None = None) -> list[Group]:
    """Groups of four of each task; this process plays where `endpoint` is given."""
    env = settings.env
    assert env is not None

    async def run() -> list[Group]:
        http = HttpClient()
        loop = None if endpoint is None else TurnLoop(endpoint=endpoint, limits=Limits(max_turns=4), seed=11)
        environment = environment_of(target, loop=loop, http=http, limits=env)
        player = LocalPlayer(Attempts(environment=environment, timeout_s=60), closers=[http.close])
        collector = RolloutCollector(player, concurrency=FixedConcurrency(8))
        try:
            return [group async for group in collector.groups(tasks, group_size=4)]
        finally:
            await collector.close()

    return sorted(asyncio.run(run()), key=lambda group: group.task_index)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def nemo_gym_here(venv: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, chain: str) -> list[str]:
    """The configs of a NeMo Gym that can be started in `directory`, with a model server of the chain."""
    folder = chain.split()[0]
    for one in (f"resources_servers/{NAME}", "responses_api_agents/simple_agent", f"responses_api_models/{folder}"):
        (directory / "venvs" / one).mkdir(parents=True)  # the venvs that it would make: all are the one that it stands in
        (directory / "venvs" / one / ".venv").symlink_to(venv)
    here = directory / "here.yaml"
    here.write_text(f"skip_venv_if_present: true\nuv_venv_dir: {directory / 'venvs'}\n")
    monkeypatch.chdir(directory)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("GYM_BRIDGE_NEMO_GYM_VENV", str(venv))
    return [f"resources_servers/{NAME}/configs/{NAME}.yaml", CHAINS[chain], str(here)]


@pytest.mark.parametrize("chain", CHAINS)
def test_agents_of_a_nemo_gym_that_we_start_bring_back_what_the_policy_sampled(
    nemo_gym_venv: Path,
    renderer: ChatMLRenderer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chain: str,
):
    settings = settings_of(gym_configs=nemo_gym_here(nemo_gym_venv, tmp_path, monkeypatch, chain))
    sampler = ScriptedSampler(renderer, CALL, "It is cold.")
    endpoint = SampledEndpoint(sampler, renderer, max_tokens=99, model="tiny")
    assert settings.env is not None
    with open_training_target(settings, settings.env, endpoint, run=tmp_path) as target:
        groups = played(target, settings, [TASK, {**TASK, "own": "field"}])
        assert target.policy is not None
        assert target.policy.calls.num_calls == 16
        rollouts = [one for group in groups for one in group.rollouts]
        kept = [target.policy.calls.find(turn.all_ids) for one in rollouts for turn in one.turns]
        assert kept == [None] * 16
    assert [(one.failure, one.reward) for one in rollouts] == [(None, 1.0)] * 8
    for one in rollouts:
        assert [turn.policy_version for turn in one.turns] == [3, 3]
        (segment,) = build_trajectory(one.key, one.turns).segments
        sampled = renderer.tokenizer.decode(segment.token_ids[segment.completion_mask].tolist())
        assert sampled == f"{CALL}<|im_end|>It is cold.<|im_end|>"
        whole = renderer.tokenizer.decode(segment.token_ids.tolist())
        assert "The weather in SF is cold." in whole[whole.index(CALL) :]
        assert one.turns[0].logprobs[:3] == (0.0, -0.125, -0.25)
        assert not any(name in str(one.row) for name in ("gym_bridge_rollout", "_ng_rollout_id", "token_ids"))
        assert one.row["gym_bridge"]["policy_versions"] == [3, 3]
    keys = sorted(tuple(key) for _, _, key in sampler.asked)
    assert keys == [(11, task, number, turn) for task in range(2) for number in range(4) for turn in range(2)]


def test_a_tiny_model_is_played_by_an_agent_as_it_is_played_here(
    nemo_gym_venv: Path,
    renderer: ChatMLRenderer,  # noqa: F811
    tmp_path: Path,
):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from gym_bridge.policy.samplers.local import LocalSampler

    torch.manual_seed(0)
    sizes: dict[str, Any] = {**SIZES, "vocab_size": 258}
    sampler = LocalSampler(LlamaForCausalLM(LlamaConfig(**sizes)).eval())
    sampler.push((), 7)
    endpoint = SampledEndpoint(sampler, renderer, max_tokens=8, model="tiny")
    port = free_port()
    model_server: Any = SimpleNamespace(url=f"http://127.0.0.1:{port}")
    try:
        with nemo_gym_serving(nemo_gym_venv, model_server, [NAME], tmp_path) as served:
            by_agent = settings_of(agent_url=served.agents[NAME], policy_address=f"127.0.0.1:{port}")
            by_us = settings_of(server=served.resources[NAME])
            assert by_agent.env is not None
            assert by_us.env is not None
            with open_training_target(by_agent, by_agent.env, endpoint, run=tmp_path) as target:
                agents = played(target, by_agent, [TASK])
            with open_training_target(by_us, by_us.env, endpoint, run=tmp_path) as target:
                ours = played(target, by_us, [TASK], endpoint)
    finally:
        sampler.close()
    ((theirs,), (own,)) = agents, ours
    assert [one.failure for one in theirs.rollouts] == [None] * 4
    assert [turn.policy_version for one in theirs.rollouts for turn in one.turns] == [7] * 4
    assert len({one.turns[0].completion_ids for one in theirs.rollouts}) > 1
    for one, other in zip(theirs.rollouts, own.rollouts, strict=True):
        assert [turn.prompt_ids for turn in one.turns] == [turn.prompt_ids for turn in other.turns]
        assert [turn.completion_ids for turn in one.turns] == [turn.completion_ids for turn in other.turns]


def test_a_policy_trains_on_what_agents_played(nemo_gym_venv: Path, tiny_llama: Path, tmp_path: Path):
    tasks = tmp_path / "tasks.jsonl"
    write_jsonl(tasks, [TASK] * 2)
    port = free_port()
    model_server: Any = SimpleNamespace(url=f"http://127.0.0.1:{port}")
    with nemo_gym_serving(nemo_gym_venv, model_server, [NAME], tmp_path) as served:
        settings = GRPOSettings.model_validate(
            {
                "policy": {"model": str(tiny_llama), "compute_dtype": "float32"},
                "data": {"train": tasks},
                "env": {"agent_url": served.agents[NAME], "policy_address": f"127.0.0.1:{port}"},
                "sampler": {"max_tokens": 8},
                # its verifier gives every reply 1
                "algorithm": {"tasks_per_step": 2, "group_size": 2, "baseline": "none", "scale": "none"},
                "trainer": {"output": tmp_path / "run", "max_steps": 2},
            }
        )
        assert train(settings).steps == 2
    found = [row for _, row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert [one["gap"] for one in found] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert [(one["num_failed"], one["staleness_max"]) for one in found] == [(0, 0), (0, 0)]
    played_by = {tuple(row["gym_bridge"]["policy_versions"]) for _, row in read_jsonl(tmp_path / "run" / "rollouts.jsonl")}
    assert played_by == {(0,), (1,)}


def test_a_nemo_gym_that_training_starts_plays_the_policy_and_is_gone_after(
    nemo_gym_venv: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tasks = tmp_path / "tasks.jsonl"
    write_jsonl(tasks, [TASK])
    settings = GRPOSettings.model_validate(
        {
            "policy": {"model": str(tiny_llama), "compute_dtype": "float32"},
            "data": {"train": tasks},
            "env": {"gym_configs": nemo_gym_here(nemo_gym_venv, tmp_path, monkeypatch, "openai_model")},
            "sampler": {"max_tokens": 8},
            "algorithm": {"tasks_per_step": 1, "group_size": 2, "baseline": "none", "scale": "none"},
            "trainer": {"output": tmp_path / "run", "max_steps": 2},
        }
    )
    assert train(settings).steps == 2
    gaps = [row["gap"] for _, row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert gaps == pytest.approx([1.0, 1.0], abs=1e-4)
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout.split()
    assert left == []


def test_agents_that_ask_another_model_stop_the_training(
    nemo_gym_venv: Path,
    model_server: ModelServer,
    renderer: ChatMLRenderer,  # noqa: F811
    tmp_path: Path,
):
    from tests.rollouts.stage import said

    model_server.scripts = {TASK["responses_create_params"]["input"]: [[said("cold")]]}
    endpoint = SampledEndpoint(ScriptedSampler(renderer, "a"), renderer, max_tokens=8, model="tiny")
    with nemo_gym_serving(nemo_gym_venv, model_server, [NAME], tmp_path) as served:
        settings = settings_of(agent_url=served.agents[NAME], policy_address=f"127.0.0.1:{free_port()}")
        assert settings.env is not None
        told = pytest.raises(ServerError, match=r"never called the policy's endpoint: .* policy_base_url=http://127.0.0.1:\d+/v1")
        with open_training_target(settings, settings.env, endpoint, run=tmp_path) as target, told:
            played(target, settings, [TASK] * 3)


def test_agents_that_run_already_need_a_port_that_somebody_told_them(renderer: ChatMLRenderer, tmp_path: Path):  # noqa: F811
    settings = settings_of(agent_url="http://127.0.0.1:1")
    endpoint = SampledEndpoint(ScriptedSampler(renderer, "a"), renderer, max_tokens=8, model="tiny")
    assert settings.env is not None
    told = pytest.raises(ConfigError, match=r"set env.policy_address=127.0.0.1:8765, and start .* \+\+policy_base_url")
    with told, open_training_target(settings, settings.env, endpoint, run=tmp_path):
        pass
