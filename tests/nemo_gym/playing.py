"""Plays tasks of real NeMo Gym environments, here or by NeMo Gym's own agents, with the scripts that solve them or do not."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.play import Play
from gym_bridge.rollouts.rows import finished_row
from gym_bridge.rollouts.sessions.agent import Agent
from gym_bridge.rollouts.sessions.detection import detect
from gym_bridge.rollouts.sessions.environment import Environment
from gym_bridge.rollouts.sessions.gymnasium import Gymnasium
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.schemas.rollouts import RolloutKey, Row
from tests.nemo_gym.replay import Lines, ModelServer, looping, prompt_of_row
from tests.rollouts.stage import called, said

Planned = Sequence[tuple[RolloutKey, Row]]


async def play_all(environment: Environment, planned: Planned) -> list[Row]:
    """Finished rows of all, played at once."""

    async def one(key: RolloutKey, row: Row) -> Row:
        play = Play()
        return finished_row(await environment.play(row, key, play), play, key, attempt=0, elapsed_s=0.0)

    return list(await asyncio.gather(*(one(key, row) for key, row in planned)))


async def environment_of(url: str, http: HttpClient, loop: TurnLoop) -> Environment:
    """The environment at a resources server, by what it speaks."""
    kind = SeedVerify if await detect(url, http) == "seed_verify" else Gymnasium
    return kind(url=url, http=http, loop=loop, request_timeout_s=30)


def direct(url: str, scripts: Mapping[str, Lines], planned: Planned) -> list[Row]:
    """Rows of rollouts in which this process is the agent."""

    async def run() -> list[Row]:
        http = HttpClient()
        try:
            return await play_all(await environment_of(url, http, looping(scripts)), planned)
        finally:
            await http.close()

    return asyncio.run(run())


def by_agent(url: str, model_server: ModelServer, scripts: Mapping[str, Lines], planned: Planned) -> list[Row]:
    """Rows of rollouts that NeMo Gym's own agent plays."""
    model_server.scripts = scripts

    async def run() -> list[Row]:
        http = HttpClient()
        try:
            return await play_all(Agent(url=url, http=http, timeout_s=60), planned)
        finally:
            await http.close()

    return asyncio.run(run())


def numbered(rows: Sequence[Row]) -> list[tuple[RolloutKey, Row]]:
    """A rollout of each."""
    return [(RolloutKey(number, 0), row) for number, row in enumerate(rows)]


def outputs(row: Row) -> list[str]:
    return [item["output"] for item in row["response"]["output"] if item["type"] == "function_call_output"]


def weather(task: Row, *, right: bool) -> Lines:
    return [[called("get_weather", {"city": "SF"})], [said("cold")]]


def multi_step(task: Row, *, right: bool) -> Lines:
    synonyms = [called("get_synonym_value", {"synonym": one}, f"c{i}") for i, one in enumerate(task["expected_synonyms"])]
    values = task["expected_synonym_values"] if right else [1, *task["expected_synonym_values"]]
    return [synonyms, [called("extract_synonym_values", {"synonym_values": values}, "last")], [said("done")]]


def workplace(task: Row, *, right: bool) -> Lines:
    truth = [called(one["name"], one["arguments"], f"c{i}") for i, one in enumerate(task["ground_truth"])]
    wrong = [called("email_send_email", {"recipient": "a@b.c", "subject": "x", "body": "y"}, "w")]
    return [[call] for call in (truth if right else wrong)] + [[said("done")]]


def choice(task: Row, *, right: bool) -> Lines:
    letter = task["expected_answer"] if right else "J" if task["expected_answer"] != "J" else "A"
    return [[said(f"\\boxed{{{letter}}}")]]


def dialogue(task: Row, *, right: bool) -> Lines:
    last = task["expected_answer"] if right else "no idea"
    return [[said(f"turn {number}")] for number, _ in enumerate(task["follow_ups"])] + [[said(last)]]


def counter(task: Row, *, right: bool) -> Lines:
    missing = task["expected_count"] - task["initial_count"] + (not right)
    parts = [called("increment_counter", {"count": 1}, "a"), called("increment_counter", {"count": missing - 1}, "b")]
    return [parts, [called("get_counter_value", {}, "c")], [said("done")]]


SCRIPTS: dict[str, Any] = {
    "example_multi_step": multi_step,
    "workplace_assistant": workplace,
    "mcqa": choice,
    "example_multi_turn_gymnasium": dialogue,
    "example_session_state_mgmt": counter,
}


def scripted(name: str, tasks: Sequence[Row], *, right: bool) -> dict[str, Lines]:
    return {prompt_of_row(task): SCRIPTS[name](task, right=right) for task in tasks}
