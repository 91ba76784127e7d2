"""Token ids inside a rollout's row, as NeMo Gym's model servers put them: on the last output item of each model call."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.schemas.rollouts import Item, Row
from gym_bridge.schemas.tokens import TurnTokens

PROMPT_IDS, COMPLETION_IDS, LOGPROBS = FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")


def with_inline_tokens(row: Row, turns: Sequence[TurnTokens], last_items: Sequence[int]) -> Row:
    """`row` with the three fields on item `last_items[i]` of `response.output` for each model call i; `row` stays as it is.

    A call that left no item, so that its index is that of an item before it or -1, has nowhere to put its tokens and is
    passed over. Without turns, as of an endpoint that reports none, the row itself is returned. Raises DataError when turns
    and calls are not as many: which turn belongs to which call is not known then.
    """
    if not turns:
        return row
    if len(turns) != len(last_items):
        raise DataError(f"{len(turns)} model calls of {len(last_items)} have tokens; inline token ids need them of every call")
    output: list[Item] = list(row["response"]["output"])
    for turn, (before, index) in zip(turns, pairwise((-1, *last_items)), strict=True):
        if index > before and _is_the_models(output[index]):
            output[index] = {
                **output[index],
                PROMPT_IDS: list(turn.prompt_ids),
                COMPLETION_IDS: list(turn.completion_ids),
                LOGPROBS: list(turn.logprobs),
            }
    return {**row, "response": {**row["response"], "output": output}}


def inline_turns(row: Row) -> tuple[TurnTokens, ...]:
    """The model calls whose token ids stand in `row`; none when one of them was reported without ids, which nothing trains on.

    A turn starts a segment when its prompt does not begin with the tokens of the turn before. The policy versions are those of
    `gym_bridge.policy_versions`, 0 in a row without. Raises DataError, without path and line, for ids without log-probs and
    the like.
    """
    output = (row.get("response") or {}).get("output") or ()
    found = [item for item in output if isinstance(item, dict) and any(item.get(name) is not None for name in FIELDS)]
    if not found or not all(item.get(COMPLETION_IDS) for item in found):
        return ()
    turns: list[TurnTokens] = []
    for item, version in zip(found, _policy_versions(row, len(found)), strict=True):
        prompt, completion = _numbers(item, PROMPT_IDS, int), _numbers(item, COMPLETION_IDS, int)
        logprobs = _numbers(item, LOGPROBS, int, float)
        if len(completion) != len(logprobs):
            raise DataError(f"an output item has {len(completion)} {COMPLETION_IDS} and {len(logprobs)} {LOGPROBS}")
        before = turns[-1].all_ids if turns else ()
        turns.append(
            TurnTokens(
                prompt_ids=prompt,
                completion_ids=completion,
                logprobs=tuple(map(float, logprobs)),
                policy_version=version,
                starts_segment=not turns or prompt[: len(before)] != before,
            )
        )
    return tuple(turns)


def _policy_versions(row: Row, num_turns: int) -> Sequence[int]:
    """One a turn. A row may tell of more calls than have ids in it: calls without an item are not among these."""
    ours = row.get("gym_bridge")
    versions: Any = (ours.get("policy_versions") if isinstance(ours, dict) else None) or [0]
    if not isinstance(versions, list) or not all(type(one) is int for one in versions):
        raise DataError(f"policy_versions is {versions!r}; expected a list of integers")
    if len(set(versions)) == 1:
        return [versions[0]] * num_turns
    if len(versions) != num_turns:
        raise DataError(f"{num_turns} model calls with token ids, and {len(versions)} policy versions")
    return versions


def _is_the_models(item: Item) -> bool:
    return item.get("type") in ("function_call", "reasoning") or item.get("role") == "assistant"


def _numbers(item: Item, name: str, *kinds: type) -> tuple[Any, ...]:
    value = item.get(name)
    if not isinstance(value, list) or not all(type(one) in kinds for one in value):
        raise DataError(f"an output item with token ids has no list of numbers as {name}")
    return tuple(value)
