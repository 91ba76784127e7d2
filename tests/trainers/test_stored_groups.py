import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.token_store import TokenStore
from gym_bridge.tokens.trajectory import build_trajectory
from gym_bridge.trainers.stored_groups import RolloutGroups, StoredGroups
from gym_bridge.trainers.stored_rollouts import StoredRollouts
from tests.trainers.stored_stage import inline_row, nemo_gym_row, row_of, turns_of, write_log, write_rows

FIXTURES = Path(__file__).parents[2] / "fixtures" / "nemo_gym"


@pytest.fixture
def open_groups():
    """Streams over rollouts files; they are closed at the end."""
    opened = []

    def build(path):
        opened.append(StoredGroups(RolloutGroups(path)))
        return opened[-1]

    yield build
    for one in opened:
        one.close()


def members(played):
    """(task, version, rollout indices) of each group."""
    return [(one.group.task_index, one.version, [rollout.key.rollout_index for rollout in one.group.rollouts]) for one in played]


def columns(played):
    """Token ids, mask and log-probs of every segment."""
    trajectories = [build_trajectory(one.key, one.turns) for group in played for one in group.group.rollouts]
    return [
        (one.token_ids.tolist(), one.completion_mask.tolist(), one.rollout_logprobs[one.completion_mask].tolist())
        for trajectory in trajectories
        for one in trajectory.segments
    ]


def test_a_group_is_the_rollouts_of_one_task_and_one_version_in_the_order_of_the_file(open_groups, tmp_path):
    keys = [(7, 1, 0), (3, 0, 0), (7, 0, 0), (7, 3, 2), (3, 1, 1), (7, 2, 2)]
    stream = open_groups(write_log(tmp_path / "R.jsonl", keys))
    assert members(stream.take(100)) == [(7, 0, [0, 1]), (3, 0, [0]), (7, 2, [2, 3]), (3, 1, [1])]


def test_equal_prompts_of_two_tasks_are_two_groups(open_groups, tmp_path):
    stream = open_groups(write_rows(tmp_path / "R.jsonl", [inline_row(0, 0), inline_row(1, 0)]))
    assert members(stream.take(2)) == [(0, 0, [0]), (1, 0, [0])]


def test_the_oldest_version_of_a_rollout_tells_its_group(open_groups, tmp_path):
    rows = [inline_row(0, index) for index in range(3)]
    for row, versions in zip(rows, ([4, 5], [5, 5], [4, 4]), strict=True):
        row["gym_bridge"]["policy_versions"] = versions
    assert members(open_groups(write_rows(tmp_path / "R.jsonl", rows)).take(9)) == [(0, 4, [0, 2]), (0, 5, [1])]


def test_tokens_beside_the_rows_and_in_them_are_the_same_trajectories(open_groups, tmp_path):
    keys = [(0, 0, 0), (0, 1, 0), (1, 0, 3)]
    beside = open_groups(write_log(tmp_path / "beside.jsonl", keys)).take(9)
    inside = open_groups(write_rows(tmp_path / "inside.jsonl", [inline_row(*key) for key in keys])).take(9)
    assert members(beside) == members(inside) == [(0, 0, [0, 1]), (1, 3, [0])]
    assert columns(beside) == columns(inside)
    ids, mask, logprobs = columns(beside)[1]
    assert ids == [5, 10, 51, 2, 8, 9, 2]
    assert mask == [False, False, True, True, False, True, True]
    assert logprobs == [-0.5, -0.25, -1.5, -0.125]
    assert [one.reward for one in beside[0].group.rollouts] == [0.0, 1.0]


def test_the_attempt_that_the_row_tells_of_is_read_from_the_store(open_groups, tmp_path):
    path = write_rows(tmp_path / "R.jsonl", [row_of(0, 0, gym_bridge={"num_turns": 2, "attempt": 1, "policy_versions": [0, 0]})])
    TokenStore(tmp_path / "R.tokens").append([((0, 0, 0), turns_of(0, 4)), ((0, 0, 1), turns_of(0, 5))])
    ((rollout,),) = (one.group.rollouts for one in open_groups(path).take(1))
    assert (rollout.attempt, rollout.turns) == (1, turns_of(0, 5))


def test_what_failed_was_masked_or_has_no_reward_is_in_no_group(open_groups, tmp_path, caplog):
    rows = [
        "<PLACEHOLDER ROW>",
        inline_row(0, 0),
        row_of(0, 1, _ng_failure_class="timeout_exceeded"),
        row_of(0, 2, mask_sample=True),
        row_of(0, 3, instance_config={"mask_sample": True}),
        row_of(0, 4, reward=None),
        "    ",
        inline_row(0, 5),
        row_of(1, 0, verification_skipped=True),
    ]
    stream = open_groups(write_rows(tmp_path / "R.jsonl", rows))
    assert members(stream.take(9)) == [(0, 0, [0, 5])]
    assert "rows left out: 1 failure, 2 masked, 1 no_reward, 1 not_a_rollout, 1 not_verified" in caplog.text


def without(row, *path):
    """The row without one of its fields."""
    row = json.loads(json.dumps(row))
    here = row
    for name in path[:-1]:
        here = here[name]
    del here[path[-1]]
    return row


def with_logprobs(values):
    row = inline_row(0, 1)
    row["response"]["output"][0]["generation_log_probs"] = values
    return row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of(0, 1), r"no token ids in the row.*--model-api tokens.*--inline-token-ids.*return_token_id_information: true"),
        (without(inline_row(0, 1), "response", "output", 0, "generation_token_ids"), "no token ids in the row"),
        (
            without(inline_row(0, 1), "response", "output", 0, "generation_log_probs"),
            "no list of numbers as generation_log_probs; collect with --model-api tokens",
        ),
        (with_logprobs([-0.5]), "2 generation_token_ids and 1 generation_log_probs; collect with"),
        (with_logprobs([-0.5, None]), "no list of numbers as generation_log_probs"),
        (with_logprobs([-0.5, 0.7]), r"a sampled token has the log-prob 0\.7"),
        (without(inline_row(0, 1), "_ng_task_index"), "_ng_task_index is missing"),
        (without(inline_row(0, 1), "_ng_rollout_index"), "_ng_rollout_index is missing"),
        (inline_row(0, 1, reward="high"), "reward is 'high'"),
        (inline_row(0, 1, gym_bridge={"num_turns": 3, "policy_versions": [0]}), "2 of its 3 model calls have token ids"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('{"_ng_task_index": ', "no JSON"),
    ],
)
def test_a_row_that_cannot_train_is_told_with_its_line(tmp_path, row, message):
    path = write_rows(tmp_path / "R.jsonl", ["", inline_row(0, 0), row])
    with pytest.raises(DataError, match=rf"R\.jsonl:3: .*{message}") as caught:
        RolloutGroups(path)
    assert (caught.value.path, caught.value.line) == (path, 3)


def test_a_logprob_that_is_no_number_in_the_store_is_refused(tmp_path):
    path = write_log(tmp_path / "R.jsonl", [(0, 0, 0)])
    with np.load(chunk := tmp_path / "R.tokens" / "chunk-000000.npz") as held:
        arrays = dict(held)
    arrays["logprobs"][1] = np.nan
    np.savez(chunk, **arrays)
    with pytest.raises(DataError, match=r"R\.jsonl:1: a sampled token has the log-prob nan"):
        RolloutGroups(path)


def test_a_torn_store_is_told_as_such(tmp_path):
    path = write_log(tmp_path / "R.jsonl", [(0, 0, 0)])
    (tmp_path / "R.tokens" / "chunk-000000.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"chunk-000000\.npz: no chunk of token arrays"):
        RolloutGroups(path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (inline_row(0, 0, params={"temperature": 0.7}), "temperature=0.7"),
        (inline_row(0, 0, params={"temperature": 0}), "temperature=0"),
        (inline_row(0, 0, params={"top_p": 0.95}), "top_p=0.95"),
        (inline_row(0, 0, params={"top_k": 40}), "top_k=40"),
        (inline_row(0, 0, params={"min_p": 0.1}), "min_p=0.1"),
        (inline_row(0, 0, params={"metadata": {"extra_body": '{"top_k": 20, "seed": 1}'}}), "top_k=20"),
        (inline_row(0, 0, params={"metadata": {"extra_body": '{"repetition_penalty": 1.1}'}}), "repetition_penalty=1.1"),
    ],
)
def test_rollouts_of_another_distribution_than_the_policys_are_refused(tmp_path, row, told):
    with pytest.raises(DataError, match=rf"R\.jsonl:1: sampled with {told}: .*collect at temperature 1"):
        RolloutGroups(write_rows(tmp_path / "R.jsonl", [row]))


def test_what_the_endpoint_said_of_its_sampling_counts_where_the_row_asked_for_nothing(tmp_path):
    row = inline_row(0, 0)
    row["response"] |= {"temperature": 0.7, "top_p": 0.8}
    with pytest.raises(DataError, match=r"R\.jsonl:1: sampled with temperature=0\.7"):
        RolloutGroups(write_rows(tmp_path / "R.jsonl", [row]))


def test_parameters_that_change_nothing_are_no_reason(open_groups, tmp_path):
    params = {"temperature": 1.0, "top_p": 1, "top_k": -1, "min_p": None, "metadata": {"extra_body": '{"seed": 3, "top_k": 0}'}}
    assert len(open_groups(write_rows(tmp_path / "R.jsonl", [inline_row(0, 0, params=params)])).take(2)) == 1


def test_a_rollout_that_stands_twice_is_refused_with_both_lines(tmp_path):
    path = write_rows(tmp_path / "R.jsonl", [inline_row(1, 0), inline_row(0, 0), inline_row(2, 0), inline_row(0, 0, 3)])
    with pytest.raises(DataError, match=r"R\.jsonl:4: task 0, rollout 0 stands in line 2 already"):
        RolloutGroups(path)


@pytest.mark.parametrize(
    ("rows", "told"), [([row_of(0, 0, reward=None)], r"no rollout to train on \(1 no_reward\)"), ([], "no rollout to train on")]
)
def test_a_file_without_anything_to_train_on_is_an_error(tmp_path, rows, told):
    with pytest.raises(ConfigError, match=told):
        RolloutGroups(write_rows(tmp_path / "R.jsonl", rows))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"R\.jsonl: No such file"):
        RolloutGroups(tmp_path / "R.jsonl")


def test_groups_end_with_the_file(open_groups, tmp_path):
    stream = open_groups(write_log(tmp_path / "R.jsonl", [(task, 0, 0) for task in range(5)]))
    assert [len(stream.take(2)) for _ in range(4)] == [2, 2, 1, 0]
    assert stream.metrics() == {"epoch": 1.0}


def test_groups_taken_since_the_last_update_count_as_not_taken(open_groups, tmp_path):
    path = write_log(tmp_path / "R.jsonl", [(task, 0, 0) for task in range(5)])
    stream = open_groups(path)
    first = stream.take(2)
    assert stream.state_dict() == {"group": 0}
    stream.stepped(1)
    state = json.loads(json.dumps(stream.state_dict()))
    second = stream.take(2)
    assert stream.metrics() == {"epoch": 0.8}
    again = open_groups(path)
    again.load_state_dict(state)
    assert members(again.take(2)) == members(second) == [(2, 0, [0]), (3, 0, [0])]
    assert members(first) == [(0, 0, [0]), (1, 0, [0])]


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_a_packed_file_is_read_as_the_plain_one(open_groups, tmp_path, pack):
    import zstandard

    plain = write_log(tmp_path / "R.jsonl", [(0, 0, 0), (1, 0, 0), (0, 1, 0)])
    expected = open_groups(plain).take(9)
    compress = gzip.compress if pack == "gz" else zstandard.compress
    packed = tmp_path / f"R.jsonl.{pack}"
    packed.write_bytes(compress(plain.read_bytes()))
    assert open_groups(packed).take(9) == expected


def test_a_file_that_changes_under_the_training_is_an_error(open_groups, tmp_path):
    path = write_rows(tmp_path / "R.jsonl", [inline_row(0, 0), inline_row(1, 0)])
    stream = open_groups(path)
    path.write_bytes(path.read_bytes().replace(b'"reward": 1.0', b'"reward":null'))
    with pytest.raises(DataError, match=r"R\.jsonl:1: the rollout is another than when training began: no_reward"):
        stream.take(1)


def test_the_environment_is_the_agent_that_played_or_else_the_files_name(open_groups, tmp_path):
    agent = {"type": "responses_api_agents", "name": "math_agent"}
    rows = [inline_row(0, 0), inline_row(1, 0, agent_ref=agent), without(inline_row(2, 0), "agent_ref")]
    played = open_groups(write_rows(tmp_path / "calculator.jsonl", rows)).take(3)
    assert [one.environment for one in played] == ["calculator", "math_agent", "calculator"]


def test_rows_of_nemo_gym_tell_what_ours_tell(open_groups, tmp_path):
    rows = [nemo_gym_row(0, 0), nemo_gym_row(0, 1)]
    rows[1]["response"]["incomplete_details"] = {"reason": "max_output_tokens"}
    ((first, second),) = (one.group.rollouts for one in open_groups(write_rows(tmp_path / "R.jsonl", rows)).take(1))
    assert first.row["gym_bridge"] == {"truncated": False, "num_turns": 2, "num_tool_calls": 0}
    assert (first.truncated, second.truncated) == (False, True)
    assert first.turns == turns_of(0, 0)


def test_a_rollout_of_nemo_gyms_own_trains(open_groups):
    row = json.loads((FIXTURES / "competitive_coding_challenges.jsonl").read_text())
    (played,) = open_groups(FIXTURES / "competitive_coding_challenges.jsonl").take(9)
    (rollout,) = played.group.rollouts
    (item,) = [one for one in row["response"]["output"] if one.get("generation_token_ids")]
    assert rollout.turns[0].completion_ids == tuple(item["generation_token_ids"])
    assert rollout.reward == row["reward"]


def test_a_rollout_is_found_by_its_key(tmp_path):
    keys = [(7, 1, 0), (3, 0, 0), (7, 0, 0), (3, 5, 1)]
    rollouts = StoredRollouts(write_log(tmp_path / "R.jsonl", keys))
    assert [rollouts.find(key) for key in [(7, 1), (3, 0), (7, 0), (3, 5), (3, 1), (7, 2), (0, 0), (9, 0)]] == [
        *(0, 1, 2, 3),
        *(None, None, None, None),
    ]
    rollouts.close()
