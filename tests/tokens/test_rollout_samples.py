"""Rollouts with token ids, in the store beside their file and in their rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gym_bridge.errors import DataError
from gym_bridge.io.inline_tokens import with_inline_tokens
from gym_bridge.io.token_store import TokenStore
from gym_bridge.schemas.tokens import TurnTokens
from gym_bridge.tokens.rollout_samples import RolloutSamples
from gym_bridge.tokens.rollout_turns import token_directory


def turn(prompt: list[int], completion: list[int], *, starts: bool = False) -> TurnTokens:
    return TurnTokens(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(-0.5 for _ in completion),
        policy_version=0,
        starts_segment=starts,
    )


TURNS = (turn([5, 6], [7, 2], starts=True), turn([5, 6, 7, 2, 8], [9, 2]))
REWRITTEN = (turn([5, 6], [7, 2], starts=True), turn([5, 6, 8], [9, 10, 2], starts=True))


def rollout(task: int = 0, *, reward: float | None = 1.0, items: int = 2, **more: Any) -> dict[str, Any]:
    output = [{"type": "message", "role": "assistant", "content": f"answer {number}"} for number in range(items)]
    row = {"_ng_task_index": task, "_ng_rollout_index": 0, "responses_create_params": {"input": "2+2?"}}
    return {**row, "response": {"output": output}, "reward": reward, **more}


def inline(turns: tuple[TurnTokens, ...], **more: Any) -> dict[str, Any]:
    return with_inline_tokens(rollout(**more), turns, list(range(len(turns))))


def shape(samples: Any) -> list[tuple[list[int], str]]:
    return [(one.token_ids.tolist(), "".join("pT"[int(trains)] for trains in one.train_mask)) for one in samples]


def test_exactly_the_sampled_tokens_train_a_sequence_for_each_segment(tmp_path: Path):
    reader = RolloutSamples(tmp_path / "R.jsonl")
    assert shape(reader.samples(inline(TURNS))) == [([5, 6, 7, 2, 8, 9, 2], "ppTTpTT")]
    assert shape(reader.samples(inline(REWRITTEN))) == [([5, 6, 7, 2], "ppTT"), ([5, 6, 8, 9, 10, 2], "pppTTT")]


@pytest.mark.parametrize("name", ["R.jsonl", "R.jsonl.gz", "R.jsonl.zst"])
def test_the_store_beside_the_file_holds_what_the_rows_do_not(tmp_path: Path, name: str):
    store = TokenStore(tmp_path / "R.tokens")
    store.append([((3, 0, 1), TURNS), ((4, 0, 0), REWRITTEN)])
    reader = RolloutSamples(tmp_path / name)
    assert token_directory(tmp_path / name) == store.directory
    first = reader.samples(rollout(3, gym_bridge={"attempt": 1}))
    assert shape(first) == shape(RolloutSamples(tmp_path / "other.jsonl").samples(inline(TURNS)))
    assert not isinstance(first, str)
    np.testing.assert_array_equal(first[0].rollout_logprobs, [np.nan, np.nan, -0.5, -0.5, np.nan, -0.5, -0.5])
    assert len(reader.samples(rollout(4))) == 2
    assert reader.samples(rollout(5)) == "no_token_ids"
    assert shape(reader.samples(inline(TURNS, task=5))) == shape(first)


def test_a_torn_store_is_an_error_and_no_missing_rollout(tmp_path: Path):
    store = TokenStore(tmp_path / "R.tokens")
    store.append([((0, 0, 0), TURNS)])
    store.chunks()[0].write_bytes(b"torn")
    with pytest.raises(DataError, match=r"chunk-000000\.npz: no chunk of token arrays"):
        RolloutSamples(tmp_path / "R.jsonl").samples(rollout())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (rollout(), "no_token_ids"),
        (inline(TURNS, reward=0.4), "low_reward"),
        (inline(TURNS, reward=None), "no_reward"),
        (inline(TURNS, mask_sample=True), "masked"),
        (inline(TURNS, _ng_failure_class="timeout_exceeded"), "failure"),
        (inline(TURNS, verification_skipped=True), "not_verified"),
    ],
)
def test_what_no_dataset_may_take_is_dropped_with_its_reason(tmp_path: Path, row: dict[str, Any], reason: str):
    assert RolloutSamples(tmp_path / "R.jsonl", min_reward=0.5).samples(row) == reason


def test_of_a_final_answer_the_last_call_alone_trains(tmp_path: Path):
    reader = RolloutSamples(tmp_path / "R.jsonl", train_on="final")
    samples = reader.samples(inline(TURNS))
    assert not isinstance(samples, str)
    (sample,) = samples
    assert sample.rollout_logprobs is not None
    assert shape([sample]) == [([5, 6, 7, 2, 8, 9, 2], "pppppTT")]
    assert np.isnan(sample.rollout_logprobs[:5]).all()
    assert shape(reader.samples(inline(REWRITTEN))) == [([5, 6, 8, 9, 10, 2], "pppTTT")]


def test_a_rollout_has_the_weight_of_its_column(tmp_path: Path):
    reader = RolloutSamples(tmp_path / "R.jsonl", weight="reward")
    samples: Any = reader.samples(inline(REWRITTEN, reward=0.25))
    assert [one.weight for one in samples] == [0.25, 0.25]


def test_ids_that_contradict_themselves_are_refused(tmp_path: Path):
    row = inline(TURNS)
    del row["response"]["output"][0]["generation_log_probs"]
    with pytest.raises(DataError, match="generation_log_probs"):
        RolloutSamples(tmp_path / "R.jsonl").samples(row)
