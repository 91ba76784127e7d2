"""Real NeMo Gym environments: played here and by NeMo Gym's own agents, the same script earns the same rewards."""

import asyncio
from typing import Any

import orjson
import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.play import Play
from gym_bridge.rollouts.sessions.agent import Agent
from gym_bridge.rollouts.sessions.head import read_head
from gym_bridge.rollouts.sessions.routing import ByAgent
from gym_bridge.schemas.rollouts import FailureType, Item, RolloutKey, Row
from tests.nemo_gym.conftest import NemoGym
from tests.nemo_gym.playing import (
    SCRIPTS,
    by_agent,
    counter,
    direct,
    multi_step,
    numbered,
    outputs,
    play_all,
    scripted,
    weather,
)
from tests.nemo_gym.replay import Lines, ModelServer, prompt_of_row
from tests.rollouts.stage import called, said

pytestmark = pytest.mark.nemo_gym


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("right", [True, False])
def test_the_same_script_earns_the_same_rewards_here_and_with_nemo_gyms_agent(
    nemo_gym: NemoGym, model_server: ModelServer, name: str, right: bool
):
    tasks = nemo_gym.tasks(name)
    scripts = scripted(name, tasks, right=right)
    ours = direct(nemo_gym.resources[name], scripts, numbered(tasks))
    theirs = by_agent(nemo_gym.agents[name], model_server, scripts, numbered(tasks))
    assert [row["reward"] for row in ours] == [float(right)] * len(tasks)
    assert [row["reward"] for row in theirs] == [float(right)] * len(tasks)
    for mine, other, task in zip(ours, theirs, tasks, strict=True):
        assert task.items() <= {**mine, "responses_create_params": task["responses_create_params"]}.items()
        assert [kind(item) for item in mine["response"]["output"]] == [kind(item) for item in other["response"]["output"]]
        assert mine["response"]["usage"]["total_tokens"] == other["response"]["usage"]["total_tokens"]
        assert mine["gym_bridge"]["num_turns"] == other["gym_bridge"]["num_turns"]
        assert mine["gym_bridge"]["truncated"] is other["gym_bridge"]["truncated"] is False


def kind(item: Item) -> tuple[str, Any]:
    """What an item is, and what it says, whoever wrote it."""
    return item["type"], item.get("output") or item.get("arguments") or item.get("role")


def test_a_single_tool_call(nemo_gym: NemoGym, model_server: ModelServer):
    name = "example_single_tool_call"
    tasks = nemo_gym.tasks(name)
    scripts = {prompt_of_row(task): weather(task, right=True) for task in tasks}
    ours = direct(nemo_gym.resources[name], scripts, numbered(tasks))
    theirs = by_agent(nemo_gym.agents[name], model_server, scripts, numbered(tasks))
    assert [row["reward"] for row in ours + theirs] == [1.0] * 10
    assert {text for row in ours + theirs for text in outputs(row)} == {
        '{"city":"SF","weather_description":"The weather in SF is cold."}'
    }


def test_the_tools_of_multi_step_answer_what_the_verifier_counts(nemo_gym: NemoGym):
    task = nemo_gym.tasks("example_multi_step")[0]
    scripts = {prompt_of_row(task): multi_step(task, right=True)}
    (row,) = direct(nemo_gym.resources["example_multi_step"], scripts, numbered([task]))
    assert [orjson.loads(text) for text in outputs(row)] == [
        *({"synonym_value": value} for value in task["expected_synonym_values"]),
        {"success": True},
    ]
    assert (row["accuracy"], row["set_overlap"], row["id"]) == (True, 1.0, task["id"])


def test_all_27_tools_of_the_workplace_are_reached(nemo_gym: NemoGym):
    task = nemo_gym.tasks("workplace_assistant")[0]
    names = [tool["name"] for tool in task["responses_create_params"]["tools"]]
    assert len(set(names)) == 27
    lines = [[called(name, {}, f"c{i}") for i, name in enumerate(names)], [said("done")]]
    (row,) = direct(nemo_gym.resources["workplace_assistant"], {prompt_of_row(task): lines}, numbered([task]))
    assert row["gym_bridge"]["num_tool_calls"] == 27
    assert row["gym_bridge"]["num_tool_errors"] == 0
    assert len(outputs(row)) == 27
    assert all(set(orjson.loads(text)) == {"output"} for text in outputs(row))


@pytest.mark.parametrize(("call", "reward"), [(True, 1.0), (False, 0.0)])
def test_tools_over_mcp_are_listed_and_called(nemo_gym: NemoGym, call: bool, reward: float):
    tasks = nemo_gym.tasks("example_mcp_weather")
    long_name = "mcp__example_mcp_weather__get_weather"
    scripts: dict[str, Lines] = {}
    for task in tasks:
        city = task["verifier_metadata"]["expected_city"]
        answer = [said(f"The weather in {city} is sunny and 72 F.")]
        scripts[prompt_of_row(task)] = [[called(long_name, {"city": city})], answer] if call else [answer]
    rows = direct(nemo_gym.resources["example_mcp_weather"], scripts, numbered(tasks))
    assert [row["reward"] for row in rows] == [reward] * 5
    assert [row["tool_call_seen"] for row in rows] == [call] * 5
    for row in rows:
        (tool,) = row["responses_create_params"]["tools"]
        assert (tool["name"], tool["parameters"]["required"]) == (long_name, ["city"])
        assert outputs(row) == [row["expected_weather"]] * call


def test_an_error_of_an_mcp_tool_is_the_models_to_read(nemo_gym: NemoGym):
    task = nemo_gym.tasks("example_mcp_weather")[0]
    lines = [[called("mcp__example_mcp_weather__get_weather", {})], [said("done")]]
    (row,) = direct(nemo_gym.resources["example_mcp_weather"], {prompt_of_row(task): lines}, numbered([task]))
    assert "city" in outputs(row)[0]
    assert row["gym_bridge"]["num_tool_errors"] == 1


def test_sessions_of_parallel_rollouts_stay_apart(nemo_gym: NemoGym):
    task = nemo_gym.tasks("example_session_state_mgmt")[0]
    planned = []
    scripts: dict[str, Lines] = {}
    for number in range(40):
        params = {**task["responses_create_params"], "input": f"rollout {number}"}
        row = {**task, "responses_create_params": params, "initial_count": 10 * number, "expected_count": 10 * number + 3}
        scripts[params["input"]] = counter(row, right=number % 2 == 0)
        planned.append((RolloutKey(number, 0), row))
    rows = direct(nemo_gym.resources["example_session_state_mgmt"], scripts, planned)
    assert [row["reward"] for row in rows] == [1.0, 0.0] * 20
    counts = [orjson.loads(outputs(row)[-1])["count"] for row in rows]
    assert counts == [10 * number + 3 + number % 2 for number in range(40)]


def test_tokens_that_the_model_reports_come_through_nemo_gyms_agent(nemo_gym: NemoGym, model_server: ModelServer):
    task = nemo_gym.tasks("example_single_tool_call")[0]
    first = {"prompt_token_ids": [1, 2], "generation_token_ids": [7, 8], "generation_log_probs": [-0.5, -0.25]}
    last = {"prompt_token_ids": [1, 2, 7, 8, 3], "generation_token_ids": [9], "generation_log_probs": [-0.125]}
    lines = [[called("get_weather", {"city": "SF"}) | first], [said("cold") | last]]
    model_server.scripts = {prompt_of_row(task): lines}
    play = Play()

    async def run() -> Row:
        http = HttpClient()
        try:
            agent = Agent(url=nemo_gym.agents["example_single_tool_call"], http=http, timeout_s=60)
            return (await agent.play(task, RolloutKey(0, 0), play)).row
        finally:
            await http.close()

    row = asyncio.run(run())
    assert [(turn.prompt_ids, turn.completion_ids, turn.logprobs, turn.starts_segment) for turn in play.turns] == [
        ((1, 2), (7, 8), (-0.5, -0.25), True),
        ((1, 2, 7, 8, 3), (9,), (-0.125,), False),
    ]
    assert play.last_items == [0, 2]
    assert not any("token_ids" in name for item in row["response"]["output"] for name in item)


def test_a_task_that_the_server_refuses_is_an_invalid_row_in_either_mode(nemo_gym: NemoGym, model_server: ModelServer):
    name = "example_session_state_mgmt"
    task = {key: value for key, value in nemo_gym.tasks(name)[0].items() if key != "initial_count"}
    told = []
    for play in (
        lambda: direct(nemo_gym.resources[name], {}, numbered([task])),
        lambda: by_agent(nemo_gym.agents[name], model_server, {}, numbered([task])),
    ):
        with pytest.raises(RolloutError) as caught:
            play()
        told.append(caught.value.failure)
    assert [(one.type, one.status, one.terminal) for one in told] == [(FailureType.INVALID_ROW, 422, True)] * 2
    assert all('"loc":["body","initial_count"]' in one.message for one in told)


def test_an_agent_given_as_a_resources_server_is_refused(nemo_gym: NemoGym):
    with pytest.raises(ConfigError, match="--agent-url"):
        direct(nemo_gym.agents["mcqa"], {}, [])


def test_rows_are_routed_to_the_agents_that_the_head_knows(nemo_gym: NemoGym, model_server: ModelServer):
    mixed: list[Row] = []
    scripts: dict[str, Lines] = {}
    for name in ("mcqa", "example_multi_turn_gymnasium", "workplace_assistant"):
        tasks = nemo_gym.tasks(name)
        mixed += [{**task, "agent_ref": {"type": "responses_api_agents", "name": f"{name}_agent"}} for task in tasks]
        scripts |= scripted(name, tasks, right=name != "mcqa")
    model_server.scripts = scripts

    async def run() -> list[Row]:
        http = HttpClient()
        try:
            head = await read_head(nemo_gym.head, http)
            assert {name: agent.url for name, agent in head.agents.items()} == {
                f"{name}_agent": url for name, url in nemo_gym.agents.items()
            }
            assert {name: server.url for name, server in head.resources_servers.items()} == nemo_gym.resources
            assert head.agent("mcqa_agent").resources_server == "mcqa"
            agents = {name: Agent(url=head.address(name), http=http, timeout_s=60) for name in head.agents}
            return await play_all(ByAgent(agents), numbered(mixed))
        finally:
            await http.close()

    rows = asyncio.run(run())
    assert [row["reward"] for row in rows] == [0.0] * 5 + [1.0] * 10
    assert [row["agent_ref"] for row in rows] == [task["agent_ref"] for task in mixed]
