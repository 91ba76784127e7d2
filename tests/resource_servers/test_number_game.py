"""The number game: higher, lower, found, and what costs a guess."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import number_game
from gym_bridge.resource_servers.number_game.app import NumberGameServer
from gym_bridge.schemas.seams import Turn, TurnRequest
from tests.resource_servers.stage import Client, Request, Row, answered, bodies, posted, rolled_out, rows, with_clients
from tests.rollouts.stage import said, turn

GAME: Row = {"responses_create_params": {"input": []}, "low": 0, "high": 9, "target": 6, "max_guesses": 3}


def steps(*texts: str, row: Row = GAME) -> list[Any]:
    """The replies to one guess after the other."""
    replies = posted(NumberGameServer(), [("/reset", row), *(("/step", answered(row, text)) for text in texts)])
    assert {status for status, _ in replies} == {200}
    return [reply for _, reply in replies[1:]]


def test_the_rules_are_told_and_the_number_is_not():
    (reply,) = posted(NumberGameServer(), [("/reset", {**GAME, "target": 6})])
    text = "I think of a whole number from 0 to 9. You have 3 guesses. What is your first guess?"
    assert reply == (200, {"observation": text, "info": {"supports_explicit_close": True}})


def test_guesses_are_answered_until_the_number_is_found():
    low, high, found = steps("I say 3.", "**8**", "It is 6")
    assert low == {
        "observation": "Higher. 2 guesses left.",
        "reward": 0.0,
        "terminated": False,
        "truncated": False,
        "info": {"num_guesses": 1},
    }
    assert high["observation"] == "Lower. 1 guess left."
    assert (found["observation"], found["reward"], found["terminated"], found["info"]) == ("Found.", 1.0, True, {"num_guesses": 3})


@pytest.mark.parametrize("text", ["6", "6.0", "6.", "My guess: 6", "+6", "x = 6"])
def test_the_number_is_rewarded(text: str):
    assert steps(text)[0]["reward"] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0 1 2 3 4 5 6 7 8 9",
        "5 or 6",
        "5 = 6",
        "six",
        "６",
        "٦",
        "6th",
        "06",
        "6.5",
        "-6",
        "1e1",
        "6\u200b7",
        "I think of a whole number from 0 to 9",
        json.dumps(GAME),
        "target",
        "9" * 400,
        "9" * 100_000,
    ],
)
def test_anything_else_costs_a_guess_and_gives_nothing(text: str):
    (reply,) = steps(text)
    assert (reply["reward"], reply["info"]["num_guesses"]) == (0.0, 1)


def test_minus_zero_is_not_the_number_zero():
    assert [reply["reward"] for reply in steps("-0", "-0.0", "0", row={**GAME, "target": 0})] == [0.0, 0.0, 1.0]


def test_the_last_guess_ends_the_game_and_nothing_can_be_won_after_it():
    *_, last, late = steps("1", "2", "3", "6")
    assert (last["observation"], last["terminated"]) == ("Higher. The game is over.", True)
    assert (late["reward"], late["terminated"], late["info"]) == (0.0, True, {"num_guesses": 3})


def test_a_number_is_found_once():
    assert [reply["reward"] for reply in steps("6", "6", "6")] == [1.0, 0.0, 0.0]


def test_an_episode_keeps_its_number_whatever_the_step_says():
    forged = {**GAME, "target": 3}
    replies = posted(NumberGameServer(), [("/reset", GAME), ("/step", answered(forged, "3")), ("/step", answered(forged, "6"))])
    assert [reply["reward"] for _, reply in replies[1:]] == [0.0, 1.0]


def test_without_an_episode_nothing_is_answered_and_a_closed_one_is_gone():
    assert posted(NumberGameServer(), [("/step", answered(GAME, "6"))])[0][0] == 400
    replies = posted(NumberGameServer(), [("/reset", GAME), ("/close", {}), ("/step", answered(GAME, "6")), ("/close", {})])
    assert [status for status, _ in replies] == [200, 200, 400, 400]


@pytest.mark.parametrize(
    "wrong", [{"target": 10}, {"target": -1}, {"low": 7}, {"max_guesses": 0}, {"target": None}, {"high": 10**400}]
)
def test_a_game_that_cannot_be_won_is_refused(wrong: Row):
    assert posted(NumberGameServer(), [("/reset", {**GAME, **wrong})])[0][0] == 422


def halving(request: TurnRequest) -> Turn:
    """A player that halves what is left, by all observations so far."""
    texts = [item["content"] for item in request.items if item.get("role") == "user"]
    low, high = map(int, re.findall(r"from (\d+) to (\d+)", texts[0])[0])
    for text in texts[1:]:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if text.startswith("Higher") else (low, middle - 1)
    return turn(said(str((low + high) // 2)))


@pytest.mark.parametrize("size", [10, 100, 127, 128, 1_000_000])
def test_halving_always_wins_in_whole_rollouts_of_our_collector(size: int):
    for row in rows(NumberGameServer, num_tasks=4, size=size):
        ended = rolled_out(NumberGameServer(), row, halving, max_turns=20)
        assert ended.row["reward"] == 1.0
        assert ended.row["terminated"]


def test_a_player_who_always_says_the_same_loses():
    row = rows(NumberGameServer, num_tasks=1)[0]
    ended = rolled_out(NumberGameServer(), row, lambda request: turn(said("-1")))
    assert (ended.row["reward"], ended.row["info"]["num_guesses"]) == (0.0, row["max_guesses"])


def test_a_seed_gives_the_same_tasks_again_and_the_splits_share_none():
    def asked(**arguments: Any) -> set[tuple[int, int]]:
        return {(row["low"], row["target"]) for row in rows(NumberGameServer, num_tasks=1000, **arguments)}

    assert rows(NumberGameServer, seed=3) == rows(NumberGameServer, seed=3)
    assert rows(NumberGameServer, seed=3) != rows(NumberGameServer, seed=4)
    train, heldout = asked(seed=1), asked(seed=1, split="heldout")
    assert (len(train), len(heldout), len(train & heldout)) == (1000, 1000, 0)


def test_the_smallest_games_are_as_many_as_promised():
    assert len(rows(NumberGameServer, num_tasks=20_000, size=10)) == 20_000
    with pytest.raises(ConfigError, match="20000 different tasks"):
        rows(NumberGameServer, num_tasks=20_001)


def test_spare_guesses_are_added():
    (tight,), (spare,) = (rows(NumberGameServer, num_tasks=1, spare_guesses=count) for count in (0, 5))
    assert spare == {**tight, "max_guesses": tight["max_guesses"] + 5}
    assert tight["max_guesses"] == 7


def test_the_examples_are_five_games_that_can_be_won():
    lines = Path(number_game.__file__).with_name("data").joinpath("example.jsonl").read_text().splitlines()
    assert [steps(str(row["target"]), row=row)[0]["reward"] for row in map(json.loads, lines)] == [1.0] * 5


def test_two_hundred_sessions_with_interleaved_steps_keep_their_numbers_apart():
    async def talk(clients: list[Client]) -> list[Any]:
        games = [{**GAME, "target": n % 10} for n in range(len(clients))]
        await asyncio.gather(*(client.post("/reset", game) for client, game in zip(clients, games, strict=True)))
        return await asyncio.gather(*(client.post("/step", answered(GAME, "4")) for client in reversed(clients)))

    rewards = [reply["reward"] for _, reply in with_clients(NumberGameServer(), 200, talk)]
    assert rewards == [float(n % 10 == 4) for n in reversed(range(200))]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(["/reset", "/step", "/close", "/aggregate_metrics"]), bodies(GAME)), min_size=1, max_size=12)
)
def test_no_body_makes_the_server_fail_or_hang(requests: list[Request]):
    assert {status for status, _ in posted(NumberGameServer(), [("/reset", GAME), *requests])} <= {200, 400, 422}
