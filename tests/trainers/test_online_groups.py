"""Groups that are played while the trainer steps: which are under way, which train, what is on disk, what a resume finds."""

import json
import threading
import time

import pytest

from gym_bridge.errors import PolicyError
from gym_bridge.schemas.rollouts import FailureType
from gym_bridge.trainers.online_groups import FlightCount
from tests.trainers.played_stage import playing


def spread(task, member):
    return float(member == 0)


def tasks_of(groups):
    return [one.group.task_index for one in groups]


def later(function, *arguments):
    threading.Timer(0.1, function, arguments).start()


def eventually(condition):
    limit = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < limit, "it never came to be"
        time.sleep(0.002)


def test_without_staleness_nothing_is_played_while_the_trainer_steps(tmp_path):
    with playing(tmp_path, spread) as (stream, collector):
        first = stream.take(2)
        assert tasks_of(first) == collector.asked == collector.asked[:2]
        stream.stepped(1)
        stream.settle()
        assert len(collector.asked) == 2
        assert tasks_of(stream.take(2)) == collector.asked[2:]


def test_groups_come_in_the_order_of_their_starts_whatever_ends_first(tmp_path):
    with playing(tmp_path, spread, held=[0, 1, 2, 3], tasks_per_step=4) as (stream, collector):
        for task in range(4):
            later(collector.release, task)
        assert tasks_of(stream.take(4)) == collector.asked


def test_with_staleness_later_groups_are_played_meanwhile(tmp_path):
    with playing(tmp_path, spread, num_tasks=8, max_staleness=1) as (stream, collector):
        first = stream.take(2)
        eventually(lambda: len(collector.asked) == 4)  # a batch and the next one
        stream.stepped(1)
        collector.version = 1
        second = stream.take(2)
        assert tasks_of(first) + tasks_of(second) == collector.asked[:4]
        assert [one.version for one in (*first, *second)] == [0, 0, 0, 0]
        stream.stepped(2)
        assert [one.version for one in stream.take(2)] == [1, 1]


def test_groups_that_a_batch_does_not_keep_make_room_for_others(tmp_path):
    with playing(tmp_path, spread, num_tasks=8) as (stream, collector):
        stream.take(2)
        assert len(tasks_of(stream.take(1))) == 1  # one of the two is kept
        assert len(tasks_of(stream.take(2))) == 2  # none of the three
        assert len(collector.asked) == 5
        stream.stepped(1)
        assert tasks_of(stream.take(2)) == collector.asked[5:]


def test_a_batch_waits_for_a_group_that_would_be_too_old_in_the_next(tmp_path):
    with playing(tmp_path, spread, num_tasks=8, tasks_per_step=1, max_staleness=1, held=range(8)) as (stream, collector):
        later(lambda: collector.release(collector.asked[0]))
        first, straggler = tasks_of(stream.take(1)), collector.asked[1]
        for task in set(range(8)) - {straggler}:
            collector.release(task)
        stream.stepped(1)
        later(collector.release, straggler)
        assert tasks_of(stream.take(1)) == [straggler]  # started with the first, though later ones were whole before it
        assert first != [straggler]


def test_what_trains_is_on_disk_before(tmp_path):
    with playing(tmp_path, spread) as (stream, _):
        stream.take(2)
        assert len((tmp_path / "rollouts.jsonl").read_bytes().splitlines()) == 4
        assert list((tmp_path / "rollouts.tokens").iterdir())


def test_a_rollout_that_is_tried_again_is_in_flight_still(tmp_path):
    told = []
    with playing(tmp_path, spread, tasks_per_step=1, in_flight=FlightCount(told.append), tried_twice=True) as (stream, _):
        stream.take(1)
    assert told == [2, 2, 1, 1, 0]


def test_weights_wait_for_the_rollouts_under_way(tmp_path):
    with playing(tmp_path, spread, max_staleness=1, held=range(4)) as (stream, collector):
        later(lambda: [collector.release(task) for task in collector.asked[:2]])
        stream.take(2)
        stream.stepped(1)
        later(lambda: [collector.release(task) for task in range(4)])
        assert stream.metrics()["num_groups_ready"] == 0
        stream.settle()
        assert stream.metrics()["num_groups_ready"] == 2


def test_weights_do_not_wait_where_they_may_change_in_flight(tmp_path):
    with playing(tmp_path, spread, max_staleness=1, in_flight_updates=True, held=range(4)) as (stream, collector):
        later(lambda: [collector.release(task) for task in collector.asked[:2]])
        stream.take(2)
        stream.stepped(1)
        stream.settle()
        assert stream.metrics()["num_groups_ready"] == 0


def test_every_rollout_is_on_disk_when_it_ends_though_its_group_never_does(tmp_path):
    def outcome(task, member):
        if member == 1:
            raise PolicyError("sampling failed")
        return 0.5

    with playing(tmp_path, outcome, tasks_per_step=1) as (stream, _), pytest.raises(PolicyError):
        stream.take(1)
    assert len((tmp_path / "rollouts.jsonl").read_bytes().splitlines()) == 1


def test_the_number_of_rollouts_in_flight_is_told(tmp_path):
    told = []
    with playing(tmp_path, spread, in_flight=FlightCount(told.append)) as (stream, _):
        stream.take(2)
    assert told == [4, 3, 2, 1, 0]


def test_rollout_indices_never_repeat(tmp_path):
    with playing(tmp_path, spread, num_tasks=3) as (stream, collector):
        for version in range(1, 6):
            stream.take(2)
            stream.stepped(version)
        state = stream.state_dict()
        before = set(collector.keys)
        assert len(before) == len(collector.keys) == 20
    with playing(tmp_path, spread, num_tasks=3, state=state) as (stream, collector):
        stream.take(2)
        assert not before & set(collector.keys)


def test_groups_that_never_trained_come_again_out_of_the_log(tmp_path):
    outcomes = [1.0, FailureType.TOOL]
    chosen = {"num_tasks": 8, "max_staleness": 1}
    with playing(tmp_path, lambda task, member: outcomes[member], tried_twice=True, **chosen) as (stream, collector):
        trained = tasks_of(stream.take(2))
        stream.stepped(1)
        taken = stream.take(2)
        eventually(lambda: len(collector.asked) == 6 and stream.metrics()["num_groups_ready"] == 2)
        state = json.loads(json.dumps(stream.state_dict()))
        asked = collector.asked
        assert len(set(asked)) == 6
    with playing(tmp_path, spread, state=state, version=1, **chosen) as (stream, collector):
        again = stream.take(2)
        assert tasks_of(again) == tasks_of(taken)
        assert [one.group.rollouts for one in again] == [one.group.rollouts for one in taken]
        assert collector.asked == []  # the room is full of what was played before
        stream.stepped(2)
        stream.take(2)
        stream.stepped(3)
        rest = tasks_of(stream.take(2))
        assert sorted([*trained, *tasks_of(taken), *asked[4:], *rest]) == list(range(8))  # one pass, each task once


def test_groups_half_played_are_played_again(tmp_path):
    with playing(tmp_path, spread, max_staleness=1, held=range(4)) as (stream, collector):
        later(lambda: [collector.release(task) for task in collector.asked[:2]])
        stream.take(2)
        stream.stepped(1)
        state = json.loads(json.dumps(stream.state_dict()))
        half = collector.asked[2:]
    with playing(tmp_path, spread, max_staleness=1, state=state, version=1) as (stream, collector):
        assert tasks_of(stream.take(2)) == half
        assert collector.asked[:2] == half
        assert all(key.rollout_index >= 1 for key in collector.keys[:4])  # the first one is in the log


def test_what_ends_the_collector_reaches_the_trainer(tmp_path):
    def outcome(task, member):
        raise PolicyError("sampling failed")

    with playing(tmp_path, outcome) as (stream, _), pytest.raises(PolicyError, match="sampling failed"):
        stream.take(2)


def test_the_ledger_closes_with_the_run(tmp_path):
    outcomes = [1.0, FailureType.TOOL]
    with playing(tmp_path, lambda task, member: outcomes[member], max_staleness=1, held=range(4)) as (stream, collector):
        later(lambda: [collector.release(task) for task in collector.asked[:2]])
        stream.take(2)
    manifest = json.loads((tmp_path / "rollouts_manifest.json").read_text())
    # of the two groups under way the first members have ended
    assert manifest["ledger"] == {"requested": 8, "completed": 4, "truncated": 0, "failed": {"tool_error": 2}, "not_attempted": 2}


def test_the_thread_ends_with_the_run(tmp_path):
    before = sum(one.name == "collector" for one in threading.enumerate())
    with playing(tmp_path, spread) as (stream, _):
        stream.take(2)
        assert sum(one.name == "collector" for one in threading.enumerate()) == before + 1
    assert sum(one.name == "collector" for one in threading.enumerate()) == before
