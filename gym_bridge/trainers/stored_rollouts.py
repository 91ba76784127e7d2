"""Rollouts that were played before, read from their file as a trainer takes them."""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from gym_bridge.errors import DataError
from gym_bridge.io.blocks import RangeReader, Source, open_plain, open_sources
from gym_bridge.io.jsonl import parse_line
from gym_bridge.io.rollout_reader import PLACEHOLDER, RolloutView, view_row
from gym_bridge.rollouts.models.sampled_params import distorting
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Rollout, RolloutKey, Row
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.tokens.rollout_turns import RolloutTurns, attempt_of, token_directory
from gym_bridge.trainers.experience import MAX_LOGPROB, version_of

WITHOUT_REWARD = ("not_verified", "no_reward")
"""Reasons not to use a rollout that do not count where rewards come from elsewhere."""
HOW_TO_GET_TOKENS = (
    "collect with --model-api tokens or the in-process sampler (--inline-token-ids puts them into the rows), or from NeMo Gym with "
    "return_token_id_information: true"
)
COLUMNS = 6


class StoredRollouts:
    """The rollouts of one file by number, in the file's order. All are checked at first; an index of 72 bytes each is held."""

    def __init__(self, path: Path, *, needs_reward: bool = True):
        """Without `needs_reward`, rollouts that have none are there as well.

        Raises ConfigError for a file that cannot be read, DataError with path and line for a rollout whose token ids or log-probs
        are missing, that was drawn from another distribution than the policy's, that has no indices or stands there twice.
        """
        self.path = path
        self.left_out: Counter[str] = Counter()
        """Rows that are not among the rollouts, by why: failure, masked, not_a_rollout, not_verified, no_reward."""
        self._turns = RolloutTurns(token_directory(path))
        self._ignored = () if needs_reward else WITHOUT_REWARD
        self._stack = ExitStack()
        try:
            (self._source,) = self._stack.enter_context(open_sources([path], seekable=True))
            columns = self._index(self._source)
            self._ranges = self._stack.enter_context(RangeReader())
        except BaseException:
            self._stack.close()
            raise
        self.task_indices, self.rollout_indices, self.versions = columns[:3]
        """[rollouts] int64 each; a rollout's version is the oldest that sampled a token of it."""
        self._lines, self._offsets, self._lengths = columns[3:]
        self._by_key = np.lexsort((self.rollout_indices, self.task_indices))
        self._keys = columns[:2, self._by_key]
        self._refuse_twins()

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, number: int) -> Rollout:
        """A rollout with its row and its turns. Raises DataError where the file has changed since."""
        line = self._lines.item(number)
        text = self._ranges.read(self._source.place, self._offsets.item(number), self._lengths.item(number))
        with told_at(self.path, line):
            rollout = read_rollout(parse_line(text, path=None), self._turns, ignored=self._ignored)
            if isinstance(rollout, str):
                raise DataError(f"the rollout is another than when training began: {rollout}; leave the file as it is")
            return rollout

    def find(self, key: RolloutKey) -> int | None:
        """The number of a rollout, None when it is not there."""
        low, high = 0, len(self)
        for column, wanted in zip(self._keys, key, strict=True):
            part = column[low:high]
            low, high = low + int(part.searchsorted(wanted)), low + int(part.searchsorted(wanted, side="right"))
        return self._by_key.item(low) if low < high else None

    def close(self) -> None:
        """Let the file go."""
        self._stack.close()

    def _index(self, source: Source) -> np.ndarray:
        """[COLUMNS, rollouts] int64, and `left_out`."""
        found, offset = array("q"), 0
        with open_plain(source.path, place=source.place) as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    with told_at(self.path, line):
                        row = {} if text.strip() == PLACEHOLDER else parse_line(text, path=None)
                        rollout = read_rollout(row, self._turns, ignored=self._ignored)
                    if isinstance(rollout, str):
                        self.left_out[rollout] += 1
                    else:
                        found.extend((*rollout.key, version_of(rollout), line, offset, len(text)))
                offset += len(text)
        return np.array(found, dtype=np.int64).reshape(-1, COLUMNS).T

    def _refuse_twins(self) -> None:
        twins = np.flatnonzero((self._keys[:, 1:] == self._keys[:, :-1]).all(axis=0))
        if len(twins):
            first, second = sorted(self._by_key[twins[0] : twins[0] + 2].tolist())
            task, index = self.task_indices[first], self.rollout_indices[first]
            told = f"task {task}, rollout {index} stands in line {self._lines[first]} already; remove one of the two"
            raise DataError(told, path=self.path, line=self._lines.item(second))


def rollout_files(path: Path) -> list[Path]:
    """All files that the rollouts of `path` are made of: itself, and those of the token store beside it."""
    return [path, *RolloutTurns(token_directory(path)).files]


@contextmanager
def told_at(path: Path, line: int) -> Iterator[None]:
    """Adds path and line to a DataError that has none."""
    try:
        yield
    except DataError as error:
        if error.path is not None:
            raise
        raise DataError(str(error), path=path, line=line) from error


def read_rollout(row: Row, turns: RolloutTurns, *, ignored: Collection[str] = ()) -> Rollout | str:
    """The rollout of a row, or why nothing is to train on it; reasons that are `ignored` are none.

    Raises DataError, without path and line, for a row that cannot train as it is.
    """
    view = view_row(row)
    reason = view.drop_reason()
    if reason not in (None, "no_prompt", *ignored):  # what was asked stands in the token ids
        return reason
    if view.task_index is None or view.rollout_index is None:
        name = TASK_INDEX if view.task_index is None else ROLLOUT_INDEX
        raise DataError(f"{name} is missing; the rollouts of a group are told by it, never by their prompts")
    check_distribution(row)
    found = _checked_turns(row, view, turns)
    key = RolloutKey(view.task_index, view.rollout_index)
    return Rollout(key=key, attempt=attempt_of(row), row=_counted(row, view, found), turns=found)


def check_distribution(row: Row) -> None:
    """Raises DataError for a rollout that was not drawn from the policy's own distribution: ratios would be of another one.

    Told by its parameters as played, those in their `metadata.extra_body`, and what the endpoint said of them in its response.
    """
    params, response = _object(row.get("responses_create_params")), _object(row.get("response"))
    for given in (params, _extra_body(params), response):
        if found := distorting(given):
            name, value = found
            raise DataError(
                f"sampled with {name}={value}: its log-probs are not those of the distribution it was drawn from; "
                "collect at temperature 1, without top_p, top_k, min_p and penalties"
            )


def _checked_turns(row: Row, view: RolloutView, turns: RolloutTurns) -> tuple[TurnTokens, ...]:
    try:
        found = turns.of(row, view)
    except DataError as error:
        if error.path is not None:
            raise
        raise DataError(f"{error}; {HOW_TO_GET_TOKENS}") from error
    if not found:
        raise DataError(f"no token ids in the row, nor of it in the file's .tokens; {HOW_TO_GET_TOKENS}")
    calls = _object(row.get("gym_bridge")).get("num_turns", len(found))
    if len(found) < calls:
        raise DataError(f"{len(found)} of its {calls} model calls have token ids; {HOW_TO_GET_TOKENS}")
    wrong = next((one for turn in found for one in turn.logprobs if not -inf < one <= MAX_LOGPROB), None)
    if wrong is not None:
        raise DataError(f"a sampled token has the log-prob {wrong}, which none can have; {HOW_TO_GET_TOKENS}")
    return found


def _counted(row: Row, view: RolloutView, turns: tuple[TurnTokens, ...]) -> Row:
    """The row with what our own rows tell beside NeMo Gym's keys."""
    if _object(row.get("gym_bridge")).get("num_turns") is not None:
        return row
    told = {"truncated": view.truncated, "num_turns": len(turns), "num_tool_calls": view.num_tool_calls}
    return {**row, "gym_bridge": {**told, **_object(row.get("gym_bridge"))}}


def _extra_body(params: Mapping[str, Any]) -> Mapping[str, Any]:
    text = _object(params.get("metadata")).get("extra_body")
    try:
        return _object(orjson.loads(text)) if isinstance(text, str) else {}
    except orjson.JSONDecodeError:
        return {}


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
