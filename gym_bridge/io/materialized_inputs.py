"""`R_materialized_inputs.jsonl`, as NeMo Gym writes it: one row for every rollout of a collection, as it was to be played."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from gym_bridge.errors import DataError
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, RolloutKey

MAX_SHOWN = 60
"""Bytes of JSON up to which a value is compared and shown as it is; a longer one is known by its digest."""

Params = dict[str, str]
"""`responses_create_params`, every value as JSON or as a digest."""


def check_inputs(path: Path, planned: Iterable[tuple[RolloutKey, Mapping[str, Any]]]) -> int:
    """Compare the rows of `path` with the rollouts that are to be played; returns how many stand on both sides.

    `planned` gives the `responses_create_params` of every rollout as they will be sent. Null is as good as absent, and 1 as
    1.0. Both sides are read once, side by side: what is held is what one side has and the other has not shown yet. Raises
    DataError with path and line for the first row whose `responses_create_params` differ, or that lacks its indices.
    """
    theirs: dict[RolloutKey, tuple[int, Params]] = {}
    ours: dict[RolloutKey, Params] = {}
    count = 0
    for row, wanted in itertools.zip_longest(_rows(path), planned):
        met: list[RolloutKey] = []
        if row is not None:
            key, line, params = row
            theirs[key] = line, params
            met.append(key)
        if wanted is not None:
            key = RolloutKey(*wanted[0])
            ours[key] = _comparable(wanted[1])
            met.append(key)
        for key in met:
            if key in theirs and key in ours:
                line, params = theirs.pop(key)
                _check_same(key, params, ours.pop(key), path, line)
                count += 1
    return count


def _rows(path: Path) -> Iterator[tuple[RolloutKey, int, Params]]:
    for line, row in read_jsonl(path):
        key = RolloutKey(row.get(TASK_INDEX), row.get(ROLLOUT_INDEX))  # pyright: ignore[reportArgumentType]
        params = row.get("responses_create_params")
        if type(key.task_index) is not int or type(key.rollout_index) is not int or not isinstance(params, dict):
            raise DataError(
                f"expected whole numbers as {TASK_INDEX} and {ROLLOUT_INDEX}, and an object as responses_create_params; "
                "NeMo Gym 0.2 or later writes them",
                path=path,
                line=line,
            )
        yield key, line, _comparable(params)


def _check_same(key: RolloutKey, then: Params, now: Params, path: Path, line: int) -> None:
    names = sorted(name for name in then | now if then.get(name) != now.get(name))
    if names:
        differing = [f"{name}: {then.get(name)} there, {now.get(name)} now" for name in names]
        raise DataError(
            f"task {key.task_index}, rollout {key.rollout_index} is not the one to be played: its responses_create_params have "
            f"{'; '.join(differing)}; pass the tasks and sampling settings that the collection was begun with",
            path=path,
            line=line,
        )


def _comparable(params: Mapping[str, Any]) -> Params:
    return {name: _shown(value) for name, value in params.items() if value is not None}


def _shown(value: Any) -> str:
    text = orjson.dumps(_plain(value), option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    return text.decode() if len(text) <= MAX_SHOWN else f"<{hashlib.blake2b(text, digest_size=6).hexdigest()}>"


def _plain(value: Any) -> Any:
    """`value` with whole floats as integers and without nulls in its objects."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
