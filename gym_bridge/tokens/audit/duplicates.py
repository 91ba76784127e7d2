"""Rows that stand in a file twice. A hash and a line number a row are kept."""

import hashlib

import orjson

from gym_bridge.schemas.rollouts import Row


class DuplicateCheck:
    """Takes in rows, and knows those that came before."""

    def __init__(self):
        self._lines: dict[int, int] = {}

    def first_line(self, line: int, row: Row) -> int | None:
        """The line of the first equal row; None for a new one. Where it came from, and the order of keys, count for nothing."""
        kept = {key: value for key, value in row.items() if key != "gym_bridge"}
        digest = hashlib.blake2b(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS), digest_size=8).digest()
        first = self._lines.setdefault(int.from_bytes(digest), line)
        return None if first == line else first
