"""Token ids inside a row: where NeMo Gym puts them, and that they read back."""

from typing import Any

import orjson
import pytest

from gym_bridge.errors import DataError
from gym_bridge.io.inline_tokens import inline_turns, with_inline_tokens
from gym_bridge.schemas.tokens import TurnTokens

CALL = {"type": "function_call", "call_id": "c0", "name": "f", "arguments": "{}"}
REASONING = {"type": "reasoning", "id": "r", "summary": []}
OUTPUT = {"type": "function_call_output", "call_id": "c0", "output": "{}"}
MESSAGE = {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "ok", "annotations": []}]}
OBSERVATION = {"type": "message", "role": "user", "content": "go on"}


def turn(prompt: tuple[int, ...], completion: tuple[int, ...], *, version: int = 0, starts: bool = False) -> TurnTokens:
    logprobs = tuple(-0.1 * (place + 1) for place in range(len(completion)))
    return TurnTokens(
        prompt_ids=prompt, completion_ids=completion, logprobs=logprobs, policy_version=version, starts_segment=starts
    )


FIRST = turn((1, 2, 3), (7, 8), version=4, starts=True)
SECOND = turn((1, 2, 3, 7, 8, 20, 21), (9,), version=5)


def row_of(*output: dict[str, Any], versions: tuple[int, ...] = (4, 5)) -> dict[str, Any]:
    return {"response": {"id": "resp_3", "output": list(output)}, "reward": 1.0, "gym_bridge": {"policy_versions": list(versions)}}


def test_the_last_item_of_each_call_carries_its_tokens_as_nemo_gym_writes_them():
    row = row_of(REASONING, CALL, OUTPUT, MESSAGE)
    before = orjson.dumps(row)
    written = with_inline_tokens(row, (FIRST, SECOND), (1, 3))
    assert written["response"]["output"] == [
        REASONING,
        {**CALL, "prompt_token_ids": [1, 2, 3], "generation_token_ids": [7, 8], "generation_log_probs": [-0.1, -0.2]},
        OUTPUT,
        {**MESSAGE, "prompt_token_ids": [1, 2, 3, 7, 8, 20, 21], "generation_token_ids": [9], "generation_log_probs": [-0.1]},
    ]
    assert {**written, "response": None} == {**row, "response": None}
    assert orjson.dumps(row) == before


def test_inline_tokens_read_back_from_disk_to_the_same_turns():
    rewritten = turn((5, 6), (7,), version=5, starts=True)
    row = row_of(CALL, OUTPUT, MESSAGE, OBSERVATION, MESSAGE, versions=(4, 5, 5))
    written = with_inline_tokens(row, (FIRST, SECOND, rewritten), (0, 2, 4))
    assert inline_turns(orjson.loads(orjson.dumps(written))) == (FIRST, SECOND, rewritten)


@pytest.mark.parametrize(
    ("output", "last_items", "kept"),
    [
        ((MESSAGE,), (-1, 0), 1),  # the first call left nothing
        ((CALL, OUTPUT), (0, 1), 0),  # the second one: the last item is the tool's
        ((CALL, OBSERVATION), (0, 1), 0),
        ((REASONING,), (0, 0), 0),
    ],
)
def test_a_call_without_an_item_has_nowhere_to_put_its_tokens(output: tuple, last_items: tuple[int, ...], kept: int):
    turns = (FIRST, turn(SECOND.prompt_ids, (9,), version=4))
    written = with_inline_tokens(row_of(*output, versions=(4, 4)), turns, last_items)
    with_ids = [item for item in written["response"]["output"] if "generation_token_ids" in item]
    assert [item["generation_token_ids"] for item in with_ids] == [list(turns[kept].completion_ids)]
    (read,) = inline_turns(written)
    assert (read.prompt_ids, read.policy_version) == (turns[kept].prompt_ids, 4)


def test_a_row_of_an_endpoint_without_tokens_stays_and_tokens_of_some_calls_alone_are_refused():
    row = row_of(MESSAGE)
    assert with_inline_tokens(row, (), (0,)) is row
    assert inline_turns(row) == inline_turns({}) == ()
    with pytest.raises(DataError, match="1 model calls of 2 have tokens"):
        with_inline_tokens(row_of(CALL, OUTPUT, MESSAGE), (FIRST,), (0, 2))


def test_a_row_of_nemo_gym_is_read():
    ids = {"prompt_token_ids": [1, 2], "generation_token_ids": [3], "generation_log_probs": [0], "routed_experts": "nrlre1:x"}
    assert inline_turns({"response": {"output": [{**MESSAGE, **ids}]}, "reward": 1.0}) == (
        TurnTokens(prompt_ids=(1, 2), completion_ids=(3,), logprobs=(0.0,), policy_version=0, starts_segment=True),
    )


def test_a_call_reported_without_ids_leaves_nothing_to_train_on():
    empty = {"prompt_token_ids": [], "generation_token_ids": [], "generation_log_probs": []}
    written = with_inline_tokens(row_of(CALL, OUTPUT, MESSAGE), (FIRST, SECOND), (0, 2))
    output = [*written["response"]["output"][:2], {**MESSAGE, **empty}]
    assert inline_turns({**written, "response": {"output": output}}) == ()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"prompt_token_ids": [1], "generation_token_ids": [2, 3], "generation_log_probs": [-0.5]}, "2 generation_token_ids and 1"),
        ({"prompt_token_ids": [1], "generation_token_ids": [2]}, "no list of numbers as generation_log_probs"),
        ({"prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [None]}, "generation_log_probs"),
        ({"prompt_token_ids": [1.5], "generation_token_ids": [2], "generation_log_probs": [-0.5]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1], "generation_token_ids": [True], "generation_log_probs": [-0.5]}, "generation_token_ids"),
    ],
)
def test_a_partial_triple_is_an_error(ids: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        inline_turns({"response": {"output": [{**MESSAGE, **ids}]}})


def test_policy_versions_that_fit_no_turn_are_an_error():
    written = with_inline_tokens(row_of(CALL, OUTPUT, MESSAGE, versions=(4, 5, 6)), (FIRST, SECOND), (0, 2))
    with pytest.raises(DataError, match="2 model calls with token ids, and 3 policy versions"):
        inline_turns(written)


@pytest.mark.parametrize("versions", [{"0": 4}, "45", 4, [4, "5"], [[4], [5]], [4, None], [True, False]])
def test_policy_versions_that_are_no_list_of_integers_are_an_error(versions: Any):
    written = with_inline_tokens(row_of(CALL, OUTPUT, MESSAGE), (FIRST, SECOND), (0, 2)) | {
        "gym_bridge": {"policy_versions": versions}
    }
    with pytest.raises(DataError, match=r"policy_versions is .*; expected a list of integers"):
        inline_turns(written)


@pytest.mark.parametrize("ours", [None, {}, {"policy_versions": None}, {"policy_versions": []}])
def test_a_row_that_tells_no_policy_version_is_of_version_0(ours: Any):
    written = with_inline_tokens(row_of(CALL, OUTPUT, MESSAGE), (FIRST, SECOND), (0, 2)) | {"gym_bridge": ours}
    assert [turn.policy_version for turn in inline_turns(written)] == [0, 0]
