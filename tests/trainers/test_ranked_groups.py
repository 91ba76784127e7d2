import json

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.trainers.ranked_groups import RankedGroups, ranked_files
from gym_bridge.trainers.stored_groups import StoredGroups
from tests.trainers.stored_stage import inline_row, row_of, turns_of, write_log, write_rows


def key(task, index):
    return {"_ng_task_index": task, "_ng_rollout_index": index}


def group(*members, ranks, **more):
    return {"rollouts": list(members), "ranks": ranks, **more}


def refused(path, lines, message, kind=DataError):
    with pytest.raises(kind, match=message):
        RankedGroups(write_rows(path, lines))


def rewards(played):
    return [(rollout.key.rollout_index, rollout.reward) for rollout in played.group.rollouts]


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([0, 1, 1], [1.0, 0.25, 0.25]),
        ([2, 1, 0], [0.0, 0.5, 1.0]),
        ([0, 0, 0], [0.5, 0.5, 0.5]),
        ([0, 0, 2], [0.75, 0.75, 0.0]),
    ],
)
def test_the_reward_is_the_share_of_siblings_beaten_and_a_tie_is_half_a_win(tmp_path, ranks, expected):
    rows = [inline_row(4, index, 2, reward=None) for index in range(3)]
    groups = RankedGroups(write_rows(tmp_path / "groups.jsonl", [group(*rows, ranks=ranks)]))
    played = groups.read(0)
    assert rewards(played) == list(enumerate(expected))
    assert (played.group.task_index, played.version, played.environment) == (4, 2, "groups")
    assert [one.turns for one in played.group.rollouts] == [turns_of(4, index, 2) for index in range(3)]
    groups.close()


def test_ranks_stand_over_numbers_that_rows_bring(tmp_path):
    rows = [inline_row(0, 0, reward=0.0), inline_row(0, 1, reward=9.0, verification_skipped=True)]
    groups = RankedGroups(write_rows(tmp_path / "groups.jsonl", [group(*rows, ranks=[0, 1])]))
    assert rewards(groups.read(0)) == [(0, 1.0), (1, 0.0)]
    groups.close()


def test_rollouts_of_another_file_are_told_by_their_keys_and_keep_their_ranks(tmp_path):
    (tmp_path / "runs").mkdir()
    write_log(tmp_path / "runs" / "R.jsonl", [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)])
    lines = [
        group(key(1, 1), key(1, 0), ranks=[0, 1], rollouts_path="runs/R.jsonl"),
        group(key(0, 0), key(0, 1), ranks=[0, 1], rollouts_path="runs/R.jsonl"),
    ]
    stream = StoredGroups(RankedGroups(path := write_rows(tmp_path / "groups.jsonl", lines)))
    first, second = stream.take(5)
    assert rewards(first) == [(0, 0.0), (1, 1.0)]  # in order of their indices, each with its own
    assert rewards(second) == [(0, 1.0), (1, 0.0)]
    assert [one.turns for one in first.group.rollouts] == [turns_of(1, 0, 1), turns_of(1, 1, 1)]
    assert ranked_files(path) == [path, tmp_path / "runs/R.jsonl", tmp_path / "runs/R.tokens/chunk-000000.npz"]
    stream.close()


def test_rows_without_a_reward_can_be_ranked(tmp_path):
    write_rows(tmp_path / "R.jsonl", [inline_row(0, 0, reward=None), inline_row(0, 1, verification_skipped=True)])
    lines = [group(key(0, 0), key(0, 1), ranks=[1, 0], rollouts_path="R.jsonl")]
    groups = RankedGroups(write_rows(tmp_path / "groups.jsonl", lines))
    assert rewards(groups.read(0)) == [(0, 0.0), (1, 1.0)]
    groups.close()


TWO = (inline_row(0, 0), inline_row(0, 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"rollouts": list(TWO)}, "'ranks' must be a list of 2 ranks"),
        ({"ranks": [0]}, "'rollouts' must be a list"),
        (group(ranks=[]), "'rollouts' must be a list of one rollout at least"),
        (group("R.jsonl:3", ranks=[0]), "'rollouts' must be a list"),
        (group(*TWO, ranks=[0]), "'ranks' must be a list of 2 ranks"),
        (group(*TWO, ranks=[1, 2]), r"'ranks' is \[1, 2\]; expected whole numbers from 0, which is best and must be there, to 1"),
        (group(*TWO, ranks=[1, 1]), "which is best and must be there"),
        (group(*TWO, ranks=[0.0, 1.0]), "expected whole numbers"),
        (group(*TWO, ranks=[True, False]), "expected whole numbers"),
        (group(*TWO, ranks=[0, -1]), "expected whole numbers"),
        (group(*TWO, ranks=[0, 5]), "expected whole numbers"),
        (group(*TWO, ranks=[0, 1], rank=1), r"unknown key 'rank'.*ranks.*a group has rollouts, ranks, rollouts_path"),
        (group(*TWO, ranks=[0, 1], rollouts_path=3), "'rollouts_path' is 3"),
        (group(*TWO, ranks=[0, 1], rollouts_path="R.jsonl"), "told by its _ng_task_index and _ng_rollout_index alone"),
        (group(key(0, 0), key(0, "1"), ranks=[0, 1], rollouts_path="R.jsonl"), "told by its _ng_task_index"),
        (group(key(0, 0), key(0, 1), ranks=[0, 1]), "there is no 'rollouts_path' to find it in"),
        (group(key(0, 0), key(0, 7), ranks=[0, 1], rollouts_path="R.jsonl"), r"R\.jsonl has no task 0, rollout 7 that can train"),
        (group(key(0, 0), key(0, 2), ranks=[0, 1], rollouts_path="R.jsonl"), r"R\.jsonl has no task 0, rollout 2 that can train"),
        (group(TWO[0], inline_row(1, 1), ranks=[0, 1]), "the rollouts are of tasks 0, 1; a group has but one"),
        (group(TWO[0], inline_row(0, 1, 3), ranks=[0, 1]), "the rollouts are of policy versions 0, 3; a group has but one"),
        (group(TWO[0], TWO[0], ranks=[0, 1]), "a rollout stands twice in the group"),
        (group(TWO[0], row_of(0, 1), ranks=[0, 1]), "no token ids in the row"),
        (group(TWO[0], inline_row(0, 1, mask_sample=True), ranks=[0, 1]), "cannot train: masked; leave it out and rank the others"),
        (group(TWO[0], inline_row(0, 1, _ng_failure_class="transient"), ranks=[0, 1]), "cannot train: failure"),
        (group(TWO[0], inline_row(0, 1, params={"temperature": 0.5}), ranks=[0, 1]), r"sampled with temperature=0\.5"),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_group_that_is_wrong_is_told_with_its_line(tmp_path, line, message):
    write_rows(tmp_path / "R.jsonl", [inline_row(0, 0), inline_row(0, 1), inline_row(0, 2, mask_sample=True)])
    refused(tmp_path / "groups.jsonl", [group(*TWO, ranks=[0, 1]), line], rf"groups\.jsonl:2: .*{message}")


def test_a_rollout_of_another_file_that_cannot_train_is_told_where_it_stands(tmp_path):
    write_rows(tmp_path / "R.jsonl", [inline_row(0, 0), row_of(0, 1)])
    lines = [group(key(0, 0), key(0, 1), ranks=[0, 1], rollouts_path="R.jsonl")]
    refused(tmp_path / "groups.jsonl", lines, r"^\S*R\.jsonl:2: no token ids in the row")


def test_files_that_are_empty_or_not_there_are_errors(tmp_path):
    refused(tmp_path / "groups.jsonl", [], "the file is empty; expected one group a line", kind=ConfigError)
    lines = [group(key(0, 0), ranks=[0], rollouts_path="gone.jsonl")]
    refused(tmp_path / "groups.jsonl", lines, r"gone\.jsonl: No such file", kind=ConfigError)
    with pytest.raises(ConfigError, match=r"none\.jsonl: No such file"):
        RankedGroups(tmp_path / "none.jsonl")


def test_a_ranked_run_goes_on_where_it_stopped(tmp_path):
    lines = [group(inline_row(task, 0), inline_row(task, 1), ranks=[0, 1]) for task in range(4)]
    path = write_rows(tmp_path / "groups.jsonl", ["    ", *lines])
    stream = StoredGroups(RankedGroups(path))
    stream.take(3)
    stream.stepped(1)
    again = StoredGroups(RankedGroups(path))
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert [one.group.task_index for one in again.take(9)] == [3]
    assert again.take(1) == []
    for one in (stream, again):
        one.close()
