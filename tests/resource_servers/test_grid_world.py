"""The grid world: walls, key and door, what moves cost, and that every map can be walked."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import grid_world
from gym_bridge.resource_servers.grid_world.app import GridWorldServer, moves_in
from gym_bridge.resource_servers.grid_world.maps import shortest_way
from tests.resource_servers.stage import Client, Request, Row, answered, bodies, posted, rolled_out, rows, with_clients
from tests.rollouts.stage import in_order, said, turn

MAP = ["#######", "#@.#..#", "#k.D.G#", "#######"]
WALK: Row = {"responses_create_params": {"input": []}, "map": MAP, "max_moves": 6}
WAY = "south east east east east"


def steps(*texts: str, row: Row = WALK) -> list[Any]:
    """The replies to one answer after the other."""
    replies = posted(GridWorldServer(), [("/reset", row), *(("/step", answered(row, text)) for text in texts)])
    assert {status for status, _ in replies} == {200}
    return [reply for _, reply in replies[1:]]


def test_the_map_is_shown_as_it_is_now():
    replies = posted(GridWorldServer(), [("/reset", WALK), ("/step", answered(WALK, "south east"))])
    start, key = (reply["observation"] for _, reply in replies)
    assert start == "You stand at @. You have no key. Moves left: 6.\n" + "\n".join(MAP)
    assert key == "Done. You have the key. Moves left: 4.\n#######\n#..#..#\n#.@..G#\n#######"
    assert replies[1][1]["info"] == {"num_moves": 2, "has_key": True}


def test_the_goal_is_rewarded_once():
    reached, late = steps(WAY, "west")
    assert reached == {
        "observation": "You reached the goal.",
        "reward": 1.0,
        "terminated": True,
        "truncated": False,
        "info": {"num_moves": 5, "has_key": True},
    }
    assert (late["reward"], late["terminated"]) == (0.0, True)


@pytest.mark.parametrize(
    "text",
    [
        WAY,
        WAY.upper(),
        f"First the key.\n{WAY}",
        "Moves: south, east, east, east, east.",
        "`south east east east east`",
        f"\n{WAY}\n\n",
    ],
)
def test_a_right_way_is_rewarded(text: str):
    assert steps(text)[0]["reward"] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "goal",
        "G",
        "east south east east east",
        "east east east east east",
        f"{WAY}\nThat is my way.",
        f"{WAY} {WAY} {WAY}",
        "south east east east east then win",
        "ｓouth east east east east",
        "south\u200b east east east east",
        "s e e e e",
        "south east x 4",
        "north, south, east or west",
        "\n".join(MAP),
        json.dumps(WALK),
        "-0",
        "9" * 5000,
        "south " * 100_000,
        "terminated: true, reward: 1.0",
    ],
)
def test_anything_else_is_not(text: str):
    (reply,) = steps(text)
    assert (reply["reward"], reply["terminated"]) == (0.0, False)
    assert 1 <= reply["info"]["num_moves"] <= 4


def test_a_wall_and_a_closed_door_cost_a_move_and_end_the_reply():
    wall, door = steps("north east", "east south east south")
    assert (wall["observation"].splitlines()[0], wall["info"]["num_moves"]) == (
        "There is no way north. You have no key. Moves left: 5.",
        1,
    )
    assert door["observation"].splitlines() == [
        "There is no way east. You have no key. Moves left: 2.",
        "#######",
        "#..#..#",
        "#k@D.G#",
        "#######",
    ]


def test_the_last_move_ends_the_walk():
    *_, over, late = steps("north", "up", "north", "north", "north", "north", WAY)
    assert (over["terminated"], over["reward"], over["info"]["num_moves"]) == (True, 0.0, 6)
    assert (late["reward"], late["observation"]) == (0.0, "The walk is over.")
    (cut,) = steps("south north south north south north south")
    assert (cut["observation"], cut["terminated"]) == ("No moves are left.", True)


def test_an_episode_keeps_its_map_whatever_the_step_says():
    forged = {**WALK, "map": ["@G"]}
    replies = posted(GridWorldServer(), [("/reset", WALK), ("/step", answered(forged, "east"))])
    assert replies[1][1]["reward"] == 0.0


def test_without_an_episode_nothing_is_answered_and_a_closed_one_is_gone():
    assert posted(GridWorldServer(), [("/step", answered(WALK, WAY))])[0][0] == 400
    replies = posted(GridWorldServer(), [("/reset", WALK), ("/close", {}), ("/step", answered(WALK, WAY))])
    assert [status for status, _ in replies] == [200, 200, 400]


@pytest.mark.parametrize(
    "lines",
    [[], ["@"], ["G"], ["@G", "."], ["@@G"], ["@GG"], ["@kkG"], ["@G?"], [""], ["@G" + "." * 21], ["@G"] + [".."] * 22, "@G", None],
)
def test_a_map_without_its_parts_is_refused(lines: Any):
    assert posted(GridWorldServer(), [("/reset", {**WALK, "map": lines})])[0][0] == 422


def test_moves_off_an_open_border_lead_nowhere():
    (reply,) = steps("west", row={**WALK, "map": ["@.G"]})
    assert reply["observation"].startswith("There is no way west.")
    assert steps("east east", row={**WALK, "map": ["@.G"]})[0]["reward"] == 1.0


def test_the_shortest_way_takes_the_key_first():
    assert shortest_way(MAP) == WAY.split()
    assert shortest_way(["@.#G"]) is None
    assert shortest_way(["#@D.G"]) is None


@pytest.mark.parametrize("size", [6, 9, 20])
def test_every_map_needs_its_key_and_can_be_walked_in_time_by_our_collector(size: int):
    for row in rows(GridWorldServer, num_tasks=5, size=size, spare_moves=0):
        assert [len(line) for line in row["map"]] == [size + 2] * (size + 2)
        assert shortest_way([line.replace("k", ".") for line in row["map"]]) is None
        way = row["shortest_way"]
        assert row["max_moves"] == len(way)
        turns = [turn(said(" ".join(way[start : start + 10]))) for start in range(0, len(way), 10)]
        ended = rolled_out(GridWorldServer(), row, in_order(*turns), max_turns=20)
        assert (ended.row["reward"], ended.row["info"]["num_moves"]) == (1.0, len(way))


def test_a_player_who_walks_into_a_wall_loses():
    row = rows(GridWorldServer, num_tasks=1)[0]
    ended = rolled_out(GridWorldServer(), row, lambda request: turn(said("I give up.")), max_turns=100)
    assert ended.row["reward"] == 0.0


def test_a_seed_gives_the_same_tasks_again_and_the_splits_share_none():
    def asked(**arguments: Any) -> set[str]:
        return {"".join(row["map"]) for row in rows(GridWorldServer, num_tasks=100, **arguments)}

    assert rows(GridWorldServer, seed=3) == rows(GridWorldServer, seed=3)
    assert asked(seed=3) != asked(seed=4)
    assert len(asked(seed=1) | asked(seed=1, split="heldout")) == 200


@pytest.mark.parametrize(
    ("knobs", "words"), [({"size": 5}, "size"), ({"size": 21}, "size"), ({"num_tasks": 10_001}, "10000 different")]
)
def test_wrong_knobs_are_refused(knobs: dict[str, int], words: str):
    with pytest.raises(ConfigError, match=words):
        rows(GridWorldServer, **knobs)


def test_the_examples_are_five_maps_that_can_be_walked():
    lines = Path(grid_world.__file__).with_name("data").joinpath("example.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert len(examples) == 5
    for row in examples:
        way = row["shortest_way"]
        assert steps(" ".join(way[:10]), *([" ".join(way[10:])] if way[10:] else []), row=row)[-1]["reward"] == 1.0


def test_two_hundred_sessions_with_interleaved_steps_keep_their_places_apart():
    async def talk(clients: list[Client]) -> list[Any]:
        await asyncio.gather(*(client.post("/reset", WALK) for client in clients))
        first = [client.post("/step", answered(WALK, "south" if n % 2 else "east")) for n, client in enumerate(clients)]
        await asyncio.gather(*first)
        return await asyncio.gather(*(client.post("/step", answered(WALK, "east east east east")) for client in reversed(clients)))

    rewards = [reply["reward"] for _, reply in with_clients(GridWorldServer(), 200, talk)]
    assert rewards == [1.0, 0.0] * 100


@given(st.text(max_size=80) | st.text(alphabet="northsuewa ,\n", max_size=80))
def test_moves_are_directions_or_none(text: str):
    assert set(moves_in(text) or []) <= {"north", "south", "west", "east"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(["/reset", "/step", "/close", "/aggregate_metrics"]), bodies(WALK)), min_size=1, max_size=12)
)
def test_no_body_makes_the_server_fail_or_hang(requests: list[Request]):
    assert {status for status, _ in posted(GridWorldServer(), [("/reset", WALK), *requests])} <= {200, 400, 422}
