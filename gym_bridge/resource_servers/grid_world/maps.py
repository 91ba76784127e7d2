"""Maps of the grid world: walls, a door and its key, a goal; how one is drawn at random and what the shortest way is.

#######     # wall    . floor
#@..#.#     @ start   G goal
#.k.D.#     k key     D door, which opens to who has the key
#...#G#
#######
"""

from collections import deque
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

DIRECTIONS = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}


class Place(NamedTuple):
    """Where somebody stands, and whether with the key."""

    row: int
    column: int
    has_key: bool = False


def start_of(rows: Sequence[str]) -> Place:
    """The place of @."""
    return next(Place(row, line.index("@")) for row, line in enumerate(rows) if "@" in line)


def moved(rows: Sequence[str], place: Place, direction: str) -> Place | None:
    """Where a move leads, with the key if it lies there; None into a wall or a closed door."""
    down, right = DIRECTIONS[direction]
    row, column = place.row + down, place.column + right
    if not (0 <= row < len(rows) and 0 <= column < len(rows[row])):
        return None
    tile = rows[row][column]
    if tile == "#" or (tile == "D" and not place.has_key):
        return None
    return Place(row, column, place.has_key or tile == "k")


def shortest_way(rows: Sequence[str]) -> list[str] | None:
    """The fewest moves to the goal; None where there is no way."""
    start = start_of(rows)
    came: dict[Place, tuple[Place, str]] = {}
    seen, queue = {start}, deque([start])
    while queue:
        place = queue.popleft()
        if rows[place.row][place.column] == "G":
            return _way_back(came, place)
        for direction in DIRECTIONS:
            after = moved(rows, place, direction)
            if after is not None and after not in seen:
                seen.add(after)
                came[after] = place, direction
                queue.append(after)
    return None


def drawing(rows: Sequence[str], place: Place) -> str:
    """The map as it is now: @ has moved, a key that was taken is gone, and so is the door that it opens."""
    gone = "@kD" if place.has_key else "@"
    lines = ["".join("." if tile in gone else tile for tile in line) for line in rows]
    line = lines[place.row]
    lines[place.row] = f"{line[: place.column]}@{line[place.column + 1 :]}"
    return "\n".join(lines)


def random_map(generator: Random, *, size: int) -> tuple[str, ...]:
    """A square map of `size` inner rows whose goal lies behind the door, and can be reached."""
    while True:
        rows = _attempt(generator, size)
        if shortest_way(rows) is not None:
            return rows


def _attempt(generator: Random, size: int) -> tuple[str, ...]:
    wall = generator.randint(2, size - 3)  # the column of the door, with two free ones on its left and one on its right
    tiles = [["#" if column == wall or generator.random() < 0.15 else "." for column in range(size)] for _ in range(size)]
    tiles[generator.randrange(size)][wall] = "D"
    left = generator.sample([(row, column) for row in range(size) for column in range(wall)], 2)
    goal = (generator.randrange(size), generator.randrange(wall + 1, size))
    for (row, column), tile in zip((*left, goal), "@kG", strict=True):
        tiles[row][column] = tile
    lines = tiles if generator.random() < 0.5 else [line[::-1] for line in tiles]
    border = "#" * (size + 2)
    return (border, *(f"#{''.join(line)}#" for line in lines), border)


def _way_back(came: dict[Place, tuple[Place, str]], place: Place) -> list[str]:
    return list(_moves_to(came, place))[::-1]


def _moves_to(came: dict[Place, tuple[Place, str]], place: Place) -> Iterator[str]:
    while place in came:
        place, direction = came[place]
        yield direction
