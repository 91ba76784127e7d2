"""A collection that NeMo Gym's `ng_collect_rollouts` began is taken over and finished."""

import logging
from pathlib import Path
from typing import Any

import orjson
import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.materialized_inputs import check_inputs
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.schemas.rollouts import RolloutKey
from tests.io.test_rollout_log import IDENTITY, finished

# Lines as nemo-gym 0.4.0 writes them, long fields left out.
DONE = (
    b'{"responses_create_params":{"input":[{"role":"user","content":"add 2"}],"temperature":null,"tools":[]},'
    b'"response":{"id":"resp_1","created_at":1.0,"model":"m","object":"response","output":[{"id":"msg","content":'
    b'[{"annotations":[],"text":"4","type":"output_text","logprobs":null}],"role":"assistant","status":"completed","type":"message"}],'
    b'"incomplete_details":null,"usage":null},"reward":0.5,"_ng_task_index":0,"_ng_rollout_index":0,"agent_ref":{"name":"simple"}}\n'
)
CUT_SHORT = (
    b'{"responses_create_params":{"input":"add 2"},"response":{"output":[],"incomplete_details":{"reason":"max_output_tokens"}},'
    b'"reward":0.0,"_ng_task_index":0,"_ng_rollout_index":1,"agent_ref":{"name":"simple"}}\n'
)
NAN_REWARD = b'{"response":{"output":[]},"reward":null,"_ng_task_index":1,"_ng_rollout_index":0,"agent_ref":{"name":"simple"}}\n'
OLD_FAILURE = b'{"response":{"id":"resp_x-failed","output":[]},"reward":0.0,"_ng_task_index":1,"_ng_rollout_index":1}\n'
JUDGE_FAILED = (
    b'{"reward":0.0,"_ng_failure_class":"judge_failed","_ng_task_index":2,"_ng_rollout_index":0,"agent_ref":{"name":"simple"}}\n'
)
TIMED_OUT = (
    b'{"reward":0.0,"_ng_failure_class":"timeout_exceeded","_ng_failure_terminal":true,"_ng_task_index":2,"_ng_rollout_index":1}\n'
)
SECOND_TRY = b'{"reward":0.0,"_ng_failure_class":"transient","_ng_task_index":2,"_ng_rollout_index":0,"_ng_attempt_index":1}\n'
INPUTS = (
    b'{"responses_create_params":{"input":[{"role":"user","content":"add 2"}],"temperature":0.7,"top_p":1},'
    b'"expected":4,"agent_ref":{"name":"simple"},"_ng_task_index":0,"_ng_rollout_index":0}\n'
    b'{"responses_create_params":{"input":[{"role":"user","content":"add 2"}],"temperature":0.7,"top_p":1},'
    b'"expected":4,"agent_ref":{"name":"simple"},"_ng_task_index":0,"_ng_rollout_index":1}\n'
    b'{"responses_create_params":{"input":[{"role":"user","content":"add 3"}],"temperature":0.7,"top_p":1},'
    b'"expected":5,"agent_ref":{"name":"simple"},"_ng_task_index":1,"_ng_rollout_index":0}\n'
)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """What `ng_collect_rollouts` leaves when it is killed."""
    path = tmp_path / "R.jsonl"
    path.write_bytes(DONE + CUT_SHORT + NAN_REWARD + OLD_FAILURE + DONE[:-40])
    (tmp_path / "R_failures.jsonl").write_bytes(JUDGE_FAILED + TIMED_OUT + SECOND_TRY)
    (tmp_path / "R_materialized_inputs.jsonl").write_bytes(INPUTS)
    return path


def adopted(path: Path, **options: Any) -> RolloutLog:
    return RolloutLog(path, identity=IDENTITY, **options)


def test_a_collection_of_nemo_gym_is_taken_over_only_on_request(begun: Path):
    content = {path: path.read_bytes() for path in begun.parent.iterdir()}
    with pytest.raises(ConfigError, match=r"was not begun here; pass --adopt to take over .* or --overwrite to discard it"):
        adopted(begun)
    with pytest.raises(ConfigError, match="pass one of them"):
        adopted(begun, adopt=True, overwrite=True)
    assert {path: path.read_bytes() for path in begun.parent.iterdir()} == content


def test_an_adopted_collection_knows_how_every_rollout_ended(begun: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), adopted(begun, adopt=True) as log:
        assert f"{begun}: cut a torn last line of {len(DONE) - 40} bytes" in caplog.text
        assert log.outcomes == {
            (0, 0): "completed",
            (0, 1): "truncated",
            (1, 0): "no_reward",
            (1, 1): "failed",
            (2, 0): "transient",
            (2, 1): "timeout_exceeded",
        }
        assert (log.mean_reward, log.num_with_reward) == (0.25, 2)  # a failure is no reward of 0
        keys = [RolloutKey(task, index) for task in range(3) for index in range(2)]
        assert [log.is_done(key) for key in keys] == [True, True, False, False, False, False]
        # What has a row in R.jsonl cannot have a second one, and NeMo Gym's own mark is heeded.
        assert [log.is_terminal(key) for key in keys] == [False, False, True, True, False, True]
        assert [log.num_failed_attempts(key) for key in keys] == [0, 0, 1, 1, 2, 1]
        log.write_inputs([{"other": 1}])
    assert (begun.parent / "R_materialized_inputs.jsonl").read_bytes() == INPUTS


def test_an_adopted_collection_is_finished_by_the_same_command_with_or_without_the_flag(begun: Path):
    with adopted(begun, adopt=True) as log:
        log.append(finished(2, attempt=2))
    with adopted(begun) as log:
        log.append(finished(3))
    with adopted(begun, adopt=True) as log:
        assert log.ledger(RolloutKey(task, 0) for task in range(4)).describe() == (
            "4 requested = 3 completed + 0 truncated + 1 no_reward"
        )
    with pytest.raises(ConfigError, match="begun by another command"):
        RolloutLog(begun, identity={}, adopt=True)
    assert begun.read_bytes().startswith(DONE + CUT_SHORT + NAN_REWARD + OLD_FAILURE + b'{"_ng_task_index":2')


def test_adopting_nothing_begins_a_collection(tmp_path: Path):
    with adopted(tmp_path / "R.jsonl", adopt=True) as log:
        log.append(finished(0))
    with adopted(tmp_path / "R.jsonl") as log:
        assert log.is_done(RolloutKey(0, 0))


@pytest.mark.parametrize("old", [b'{"response":{},"reward":1.0}\n', b'{"response":{},"reward":1.0,"_ng_task_index":0}\n'])
def test_rows_of_old_versions_are_refused_by_line_and_nothing_is_begun(tmp_path: Path, old: bytes):
    path = tmp_path / "R.jsonl"
    path.write_bytes(DONE + old)
    with pytest.raises(DataError, match=r"R\.jsonl:2: no whole number as .*_ng_rollout_index: .*NeMo Gym 0\.2 or later"):
        adopted(path, adopt=True)
    assert [one.name for one in tmp_path.iterdir()] == ["R.jsonl"]


def test_a_pair_that_nemo_gym_wrote_twice_is_reported_with_both_lines(tmp_path: Path):
    path = tmp_path / "R.jsonl"
    path.write_bytes(DONE + CUT_SHORT + DONE)
    with pytest.raises(DataError, match=r"R\.jsonl:3: task 0, rollout 0 stands in line 1 already"):
        adopted(path, adopt=True)


def test_tokens_that_nobody_wrote_for_these_rows_are_not_adopted(begun: Path):
    (begun.parent / "R.tokens").mkdir()
    (begun.parent / "R.tokens" / "chunk-000000.npz").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"chunk-000000\.npz exists and was not begun here"):
        adopted(begun, adopt=True)


@pytest.mark.parametrize("attempt", [b"-1", b'"0"', b"true"])
def test_a_bad_attempt_is_refused(tmp_path: Path, attempt: bytes):
    (tmp_path / "R_failures.jsonl").write_bytes(JUDGE_FAILED + SECOND_TRY.replace(b":1}", b":" + attempt + b"}"))
    with pytest.raises(DataError, match=r"R_failures\.jsonl:2: _ng_attempt_index is "):
        adopted(tmp_path / "R.jsonl", adopt=True)


def planned(*keys: tuple[int, int], content: str = "add 2", **params: Any) -> list[tuple[RolloutKey, dict[str, Any]]]:
    given = {"input": [{"role": "user", "content": content}], "temperature": 0.7, "top_p": 1.0, "tools": None, **params}
    return [(RolloutKey(*key), given) for key in keys]


def test_inputs_that_agree_are_counted_where_both_sides_have_them(begun: Path):
    inputs = begun.parent / "R_materialized_inputs.jsonl"
    assert check_inputs(inputs, planned((0, 0), (0, 1))) == 2
    assert check_inputs(inputs, [*planned((1, 0), content="add 3"), *planned((0, 1), (7, 0), (0, 0))]) == 3
    assert check_inputs(inputs, planned((7, 0))) == 0


def test_the_first_input_that_differs_is_reported_with_what_differs(begun: Path):
    inputs = begun.parent / "R_materialized_inputs.jsonl"
    with pytest.raises(DataError, match=r"inputs\.jsonl:2: task 0, rollout 1 .* temperature: 0\.7 there, 0\.5 now"):
        check_inputs(inputs, [*planned((0, 0)), *planned((0, 1), temperature=0.5)])
    with pytest.raises(
        DataError, match=r"inputs\.jsonl:3: task 1, rollout 0 .* input: .*add 3.* there, .*add 9.* now; seed: None there, 1 now"
    ):
        check_inputs(inputs, planned((1, 0), content="add 9", seed=1))
    with pytest.raises(DataError, match=r"inputs\.jsonl:3: .* input: .*add 3.* there, <[0-9a-f]{12}> now"):
        check_inputs(inputs, planned((1, 0), content="add " * 50))


@pytest.mark.parametrize(
    "row", [{"responses_create_params": {}, "_ng_task_index": 0}, {"_ng_task_index": 0, "_ng_rollout_index": 0}]
)
def test_an_input_row_of_another_shape_is_refused(tmp_path: Path, row: dict[str, Any]):
    path = tmp_path / "R_materialized_inputs.jsonl"
    path.write_bytes(orjson.dumps(row) + b"\n")
    with pytest.raises(DataError, match=r"inputs\.jsonl:1: expected whole numbers"):
        check_inputs(path, [])
