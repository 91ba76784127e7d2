"""Token ids of rollouts, those of the store and those in the row: whole, aligned, and what the row says.

A completion is what one model call sampled. It trains as a whole, so nothing else may stand in it.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from gym_bridge.errors import DataError
from gym_bridge.io.inline_tokens import COMPLETION_IDS, FIELDS, LOGPROBS, inline_turns
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.io.token_store import TokenKey, TokenStore
from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, TASK_INDEX, RolloutKey, Row
from gym_bridge.schemas.tokens import Segment, TurnTokens
from gym_bridge.tokens.renderers import Renderer
from gym_bridge.tokens.trajectory import build_trajectory

MAX_INDEX = 2**63
NUM_IDS = 2**31  # what an int32 holds

Told = tuple[str, str]
"""Check and message."""


class TokenCheck:
    """Checks the token ids of the rollouts of one file."""

    def __init__(self, path: Path, renderer: Renderer):
        stem = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".jsonl")
        self._store = TokenStore(path.with_name(stem + ".tokens"))
        self._has_store = self._store.directory.is_dir()
        self._tokenizer = renderer.tokenizer
        self._stops = frozenset(renderer.get_stop_token_ids())

    def turns(self, row: Row, view: RolloutView) -> tuple[tuple[TurnTokens, ...], list[Told]]:
        """The model calls of a rollout, empty where none has ids, and what is wrong with how they are kept."""
        told: list[Told] = []
        inline: tuple[TurnTokens, ...] = ()
        stored: tuple[TurnTokens, ...] = ()
        if not _has_policy_versions(row):
            return (), [("tokens", "'policy_versions' of 'gym_bridge' is no list of integers")]
        try:
            inline = inline_turns(row)
        except DataError as error:
            told.append(("logprobs" if LOGPROBS in str(error) else "tokens", str(error)))
        key = _key(row, view)
        if self._has_store and key is not None:
            try:
                stored = self._store.read(key)
            except DataError as error:
                told.append(("tokens", str(error)))
        if inline and stored and not _are_equal(inline, stored):
            told.append(("tokens", "the token ids or log-probs in the row are not those of the token store"))
        if not (inline or stored or told) and _has_inline_fields(row):
            told.append(("ids", f"a model call has no {COMPLETION_IDS}; nothing trains on this rollout"))
        turns = stored or inline
        ids = {token for turn in turns for token in (min(turn.all_ids, default=0), max(turn.all_ids, default=0))}
        if strange := sorted(token for token in ids if not 0 <= token < NUM_IDS):
            return (), [*told, ("tokens", f"{strange[0]} is no token id")]
        return turns, told

    def check(self, turns: Sequence[TurnTokens], answers: Sequence[Message]) -> Iterator[Told]:
        """What is wrong with `turns`; `answers` are the assistant messages of the same model calls, where they are known."""
        for number, turn in enumerate(turns):
            yield from self._check_turn(number, turn)
            if number and turn.starts_segment:
                kept = _shared(turns[number - 1].all_ids, turn.prompt_ids)
                before = len(turns[number - 1].all_ids)
                yield (
                    "segments",
                    f"turn {number} starts a new segment: its prompt keeps {kept} of the {before} tokens of turn {number - 1}",
                )
        if len(answers) == len(turns):
            for number, (turn, answer) in enumerate(zip(turns, answers, strict=True)):
                if wrong := self._unsaid(turn, answer):
                    yield "text", f"the sampled tokens of turn {number} do not hold {wrong}; is this the model that sampled them?"
                    return

    def _check_turn(self, number: int, turn: TurnTokens) -> Iterator[Told]:
        if len(turn.logprobs) != len(turn.completion_ids):
            yield "logprobs", f"turn {number} has {len(turn.completion_ids)} sampled tokens and {len(turn.logprobs)} log-probs"
        elif not all(math.isfinite(one) and one <= 0 for one in turn.logprobs):
            yield "logprobs", f"turn {number} has a log-prob that is not finite or above 0"
        if not turn.completion_ids:
            yield "mask", f"turn {number} sampled no token"
        if not turn.prompt_ids:
            yield "tokens", f"turn {number} has no prompt"
        after = next((at for at, token in enumerate(turn.completion_ids, 1) if token in self._stops), None)
        if after is not None and after < len(turn.completion_ids):
            rest = len(turn.completion_ids) - after
            yield "mask", f"{rest} tokens after the end of the answer of turn {number} would train; the model did not sample them"

    def _unsaid(self, turn: TurnTokens, answer: Message) -> str | None:
        """What the answer says and the tokens do not, as letters in order: parsers move and strip blanks, and drop marks."""
        sampled = "".join(self._tokenizer.decode(list(turn.completion_ids)).split())
        content = answer.get("content")
        said = [content] if isinstance(content, str) else []
        said += [call["function"]["name"] for call in answer.get("tool_calls") or []]
        return next((f"{one[:60]!r}" for one in said if not _is_spelt("".join(one.replace("\ufffd", "").split()), sampled)), None)


def trajectory_segments(turns: Sequence[TurnTokens]) -> tuple[Segment, ...]:
    """The training sequences of a rollout. Raises DataError where a turn does not begin with the turn that it goes on from."""
    whole = [turn for turn in turns if len(turn.logprobs) == len(turn.completion_ids)]
    return build_trajectory(RolloutKey(0, 0), whole).segments if len(whole) == len(turns) else ()


def _key(row: Row, view: RolloutView) -> TokenKey | None:
    attempt = (row.get("gym_bridge") or {}).get("attempt", row.get(ATTEMPT_INDEX, 0))
    key = (row.get(TASK_INDEX), view.rollout_index, attempt)
    if not all(type(one) is int and abs(one) < MAX_INDEX for one in key):
        return None
    return key[0], key[1], key[2]  # type: ignore[return-value]


def _has_policy_versions(row: Row) -> bool:
    """True too where the row tells of none."""
    versions = (row.get("gym_bridge") or {}).get("policy_versions") or []
    return isinstance(versions, list) and all(type(one) is int for one in versions)


def _has_inline_fields(row: Row) -> bool:
    output = (row.get("response") or {}).get("output") or ()
    return any(isinstance(item, dict) and any(item.get(name) is not None for name in FIELDS) for item in output)


def _are_equal(inline: Sequence[TurnTokens], stored: Sequence[TurnTokens]) -> bool:
    """The store keeps float32; calls that left no item are in the store alone."""
    kept = {(turn.prompt_ids, turn.completion_ids): turn for turn in stored}
    for turn in inline:
        same = kept.get((turn.prompt_ids, turn.completion_ids))
        if same is None or len(same.logprobs) != len(turn.logprobs):
            return False
        if not all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6) for a, b in zip(same.logprobs, turn.logprobs, strict=True)):
            return False
    return True


def _shared(before: tuple[int, ...], prompt: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    pairs = zip(before, prompt, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(before), len(prompt)))


def _is_spelt(text: str, letters: str) -> bool:
    """Whether `letters` hold those of `text`, in order."""
    if text in letters:
        return True
    rest = iter(letters)
    return all(letter in rest for letter in text)
