"""The head server's configuration: who runs, where, and which verifier waits for siblings; and the routing of rows by it."""

import asyncio
import json
from typing import Any

import pytest

from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.sessions.head import HeadConfig, addresses, head_config, read_head
from gym_bridge.rollouts.sessions.routing import ByAgent
from gym_bridge.schemas.rollouts import FailureType, RolloutKey, Row, StopReason
from tests.rollouts.dialects import Handler, Server, abort, answering
from tests.rollouts.stage import serving

YAML = """
weather:
  resources_servers:
    example_weather: {entrypoint: app.py, domain: agent, host: 127.0.0.1, port: 12001}
compare:
  resources_servers:
    genrm_compare: {entrypoint: app.py, host: 0.0.0.0, port: 12002, num_rollouts_per_prompt: "${rollout.siblings}"}
weather_simple_agent:
  responses_api_agents:
    simple_agent:
      entrypoint: app.py
      resources_server: {type: resources_servers, name: weather}
      model_server: {type: responses_api_models, name: policy_model}
      host: 10.0.0.7
      port: 12003
compare_agent:
  responses_api_agents:
    simple_agent: {entrypoint: app.py, resources_server: {name: compare}, host: "${default_host}", port: 12004}
idle_agent:
  responses_api_agents:
    simple_agent: {entrypoint: app.py}
policy_model:
  responses_api_models:
    openai_model: {entrypoint: app.py, host: 127.0.0.1, port: 12005, openai_api_key: "${oc.env:HOME}"}
head_server: {host: 127.0.0.1, port: 11000}
default_host: "::1"
rollout: {siblings: 4}
config_paths: [a.yaml]
"""


def read(handler: Handler) -> HeadConfig:
    async def run() -> HeadConfig:
        http = HttpClient()
        try:
            async with serving(Server({"/global_config_dict_yaml": handler}).application()) as url:
                return await read_head(url + "/", http)
        finally:
            await http.close()

    return asyncio.run(run())


@pytest.mark.parametrize("body", [json.dumps(YAML), YAML])
def test_agents_and_resources_servers_are_read_from_a_json_string_or_raw_yaml(body: str):
    head = read(answering(body))
    assert set(head.agents) == {"weather_simple_agent", "compare_agent", "idle_agent"}
    assert set(head.resources_servers) == {"weather", "compare"}
    assert head.address("weather_simple_agent") == "http://10.0.0.7:12003"
    assert head.resources_servers["weather"].url == "http://127.0.0.1:12001"
    assert head.resources_servers["weather"].implementation == "example_weather"


def test_a_server_that_binds_to_every_host_answers_at_the_heads():
    assert read(answering(YAML)).resources_servers["compare"].url == "http://127.0.0.1:12002"
    parsed = {"x": {"resources_servers": {"y": {"host": "0.0.0.0", "port": 5}}}}
    assert head_config(parsed, url="http://node7:11000").resources_servers["x"].url == "http://node7:5"


def test_references_are_followed_within_the_configuration_and_never_into_the_environment():
    head = read(answering(YAML))
    assert head.address("compare_agent") == "http://[::1]:12004"
    parsed = {"x": {"resources_servers": {"y": {"host": "${oc.env:HOME}", "port": 5}}}, "a": "${b}", "b": "${a}"}
    assert head_config(parsed, url="http://h:1").resources_servers["x"].url is None
    parsed["x"]["resources_servers"]["y"]["host"] = "${a}"
    assert head_config(parsed, url="http://h:1").resources_servers["x"].url is None


def test_a_cohort_is_told_by_the_verifier_behind_an_agent():
    head = read(answering(YAML))
    assert head.cohort_size("compare_agent") == 4
    assert head.cohort_size("weather_simple_agent") is None
    assert head.cohort_size("idle_agent") is None
    driven = head.driven_by("compare_agent")
    assert driven is not None
    assert driven.name == "compare"


@pytest.mark.parametrize("size", [1, 0, "4", None, True, 2.0])
def test_no_other_number_is_a_cohort(size: Any):
    parsed = {"x": {"resources_servers": {"genrm_compare": {"num_rollouts_per_prompt": size}}}}
    assert head_config(parsed, url="http://h:1").resources_servers["x"].cohort_size is None


def test_an_unknown_agent_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="no agent 'compare_agnet'; did you mean 'compare_agent'"):
        read(answering(YAML)).address("compare_agnet")


def test_an_agent_that_is_not_started_is_told():
    with pytest.raises(ConfigError, match="'idle_agent' has no host and port"):
        read(answering(YAML)).address("idle_agent")


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (abort, "no head server answers"),
        (answering("nope", 404), "answered 404"),
        (answering("a: [b"), "no YAML"),
        (answering('"just a text"'), "answered str"),
        (answering("[1]"), "answered list"),
        (answering(""), "answered NoneType"),
    ],
)
def test_what_is_no_head_is_a_server_error(handler: Handler, message: str):
    with pytest.raises(ServerError, match=message):
        read(handler)


def test_instances_of_any_shape_are_passed_over():
    parsed: dict[str, Any] = {
        "a": None,
        "b": [],
        "c": {},
        "d": {"resources_servers": None},
        "e": {"resources_servers": {"x": {}, "y": {}}},
        "f": {"responses_api_agents": {"x": {"resources_server": "g", "host": 3, "port": "4"}}},
        "g": {"responses_api_agents": {"x": {"resources_server": {"name": 5}, "host": "h", "port": 70000}}},
    }
    head = head_config(parsed, url="http://h:1")
    assert head.resources_servers == {}
    assert {name: (agent.url, agent.resources_server) for name, agent in head.agents.items()} == {
        "f": (None, None),
        "g": (None, None),
    }


def test_the_addresses_of_every_server_that_is_started_are_known():
    import yaml

    assert addresses(yaml.safe_load(YAML), url="http://127.0.0.1:11000") == {
        "weather": "http://127.0.0.1:12001",
        "compare": "http://127.0.0.1:12002",
        "weather_simple_agent": "http://10.0.0.7:12003",
        "compare_agent": "http://[::1]:12004",
        "policy_model": "http://127.0.0.1:12005",
    }


class Named:
    """An environment that tells its name."""

    def __init__(self, name: str):
        self.name = name

    async def play(self, row: Row, key: RolloutKey, play: Play) -> Played:
        return Played(row={"played_by": self.name, "key": key}, stop=StopReason.ANSWERED)


def routed(row: Row, default: Named | None = None) -> Row:
    environment = ByAgent({"first": Named("first"), "second": Named("second")}, default)
    return asyncio.run(environment.play(row, RolloutKey(1, 2), Play())).row


def test_a_row_is_played_where_its_agent_is():
    assert routed({"agent_ref": {"name": "second"}}) == {"played_by": "second", "key": (1, 2)}


@pytest.mark.parametrize("row", [{}, {"agent_ref": None}, {"agent_ref": {}}])
def test_a_row_that_names_no_agent_is_played_in_the_default(row: Row):
    assert routed(row, Named("default"))["played_by"] == "default"
    with pytest.raises(RolloutError, match="no agent_ref") as caught:
        routed(row)
    assert (caught.value.failure.type, caught.value.failure.terminal) == (FailureType.INVALID_ROW, True)


@pytest.mark.parametrize(("name", "message"), [("frist", "did you mean 'first'"), (["first"], "no agent of this run")])
def test_a_row_that_names_an_unknown_agent_is_invalid_even_with_a_default(name: Any, message: str):
    with pytest.raises(RolloutError, match=message) as caught:
        routed({"agent_ref": {"name": name}}, Named("default"))
    assert (caught.value.failure.type, caught.value.failure.terminal) == (FailureType.INVALID_ROW, True)
