"""A grid world: take the key, pass the door, reach the goal, in few moves."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.base import KnownAnswers, Response, Split, Step, StepwiseServer, Task
from gym_bridge.resource_servers.grid_world.maps import DIRECTIONS, Place, drawing, moved, random_map, shortest_way, start_of
from gym_bridge.resource_servers.splits import drawn, refuse_more_than
from gym_bridge.schemas.rollouts import Row

MAX_TASKS = 10_000
MAX_SIZE = 20
MAX_MOVES_A_REPLY = 10
MAX_REPLY_CHARACTERS = 10_000
SYSTEM = (
    "You walk on a map: @ is you, # a wall, k the key, D the door, G the goal. The door opens when you have the key. "
    f"Each of your messages ends with a line of moves, at most {MAX_MOVES_A_REPLY}, such as: north east east"
)

Line = Annotated[str, StringConstraints(pattern=r"^[#.@kDG]+$", min_length=1, max_length=MAX_SIZE + 2)]


class WalkTask(Task):
    """What the world reads of a row."""

    map: tuple[Line, ...] = Field(min_length=1, max_length=MAX_SIZE + 2)
    """Lines from north to south, with one @, one G, and at most one k."""
    max_moves: int = Field(ge=1, le=10_000)

    @field_validator("map")
    @classmethod
    def _one_of_each(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        tiles = "".join(lines)
        if len({len(line) for line in lines}) != 1 or tiles.count("@") != 1 or tiles.count("G") != 1 or tiles.count("k") > 1:
            raise ValueError("expected lines of one length with one @, one G and at most one k")
        return lines


class Knobs(StrictModel):
    """How large the maps are."""

    size: int = Field(6, ge=6, le=MAX_SIZE)
    """Rows and columns within the border."""
    spare_moves: int = Field(4, ge=0, le=1000)
    """Moves beyond those of the shortest way."""


@dataclass(slots=True)
class Walk:
    """An episode."""

    task: WalkTask
    place: Place
    num_moves: int = 0
    over: bool = False


class GridWorldServer(StepwiseServer[WalkTask, Walk]):
    """A walk over a map; the reward is 1 for the step that reaches the goal, else 0.

    A move into a wall counts and ends the reply's moves; a reply without moves counts as one.
    """

    Task = WalkTask
    Knobs = Knobs

    async def reset(self, task: WalkTask) -> tuple[Walk, str]:
        """A walk at its start, and the map."""
        walk = Walk(task, start_of(task.map))
        return walk, _seen(walk, "You stand at @.")

    async def step(self, task: WalkTask, response: Response, session: Walk) -> Step:
        """Make the moves of the reply's last line; the map that the session began with counts, whatever `task` says."""
        if session.over:
            return Step(reward=0.0, observation="The walk is over.", terminated=True)
        moves = moves_in(response.final_text)
        told = _walk(session, moves) if moves else _wait(session)
        reached = _tile(session) == "G"
        session.over = reached or session.num_moves >= session.task.max_moves
        return Step(
            reward=float(reached),
            observation=told if session.over else _seen(session, told),
            terminated=session.over,
            info={"num_moves": session.num_moves, "has_key": session.place.has_key},
        )

    @classmethod
    def known_answers(cls, row: Row) -> KnownAnswers:
        """The shortest way, a reply for each stretch of it, and the same without its last move."""
        way = shortest_way(row["map"])
        if way is None:
            return {}
        stretches = [way[first : first + MAX_MOVES_A_REPLY] for first in range(0, len(way), MAX_MOVES_A_REPLY)]
        good = [" ".join(moves) for moves in stretches]
        return {"good": [good], "bad": [[*good[:-1], " ".join(stretches[-1][:-1]) or "wait"]]}

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the split of a map is fixed."""
        refuse_more_than(MAX_TASKS, num_tasks)
        maps = drawn(
            lambda generator: random_map(generator, size=knobs.size),
            identity="\n".join,
            num_tasks=num_tasks,
            seed=seed,
            split=split,
        )
        return (_row(rows, knobs.spare_moves, split) for rows in maps)


def moves_in(text: str) -> list[str] | None:
    """The moves in the last line of a reply; None where it holds anything else, too many or none."""
    if len(text) > MAX_REPLY_CHARACTERS or not text.strip():
        return None
    moves = re.sub(r"^moves?:|[*_`,.]", " ", text.strip().splitlines()[-1].lower()).split()
    right = all(move in DIRECTIONS for move in moves) and 1 <= len(moves) <= MAX_MOVES_A_REPLY
    return moves if right else None


def _walk(walk: Walk, moves: list[str]) -> str:
    for move in moves:
        if walk.num_moves >= walk.task.max_moves:
            return "No moves are left."
        walk.num_moves += 1
        after = moved(walk.task.map, walk.place, move)
        if after is None:
            return f"There is no way {move}."
        walk.place = after
        if _tile(walk) == "G":
            return "You reached the goal."
    return "Done."


def _wait(walk: Walk) -> str:
    walk.num_moves += 1
    return "Your last line is no list of moves: north, south, east or west."


def _tile(walk: Walk) -> str:
    return walk.task.map[walk.place.row][walk.place.column]


def _seen(walk: Walk, told: str) -> str:
    key = "You have the key." if walk.place.has_key else "You have no key."
    left = walk.task.max_moves - walk.num_moves
    return f"{told} {key} Moves left: {left}.\n{drawing(walk.task.map, walk.place)}"


def _row(rows: tuple[str, ...], spare_moves: int, split: Split) -> Row:
    way = shortest_way(rows) or []
    return {
        "responses_create_params": {"input": [{"role": "system", "content": SYSTEM}]},
        "map": list(rows),
        "max_moves": len(way) + spare_moves,
        "shortest_way": way,
        "split": split,
    }
