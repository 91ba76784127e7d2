"""Which tasks come, in what order, and that kills lose and repeat none."""

import json
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.settings import CurriculumSettings
from gym_bridge.trainers.task_stream import TaskSet, TaskStream


def tasks(count, first=0):
    return [{"_ng_task_index": first + number} for number in range(count)]


def stream(count, *, seed=0, **curriculum):
    """One set of tasks; with settings of a curriculum, or none."""
    chosen = CurriculumSettings(**curriculum) if curriculum else None
    return TaskStream([TaskSet(name="tasks", tasks=tasks(count))], seed=seed, curriculum=chosen)


def mixed(weights, counts):
    """Sets a, b, c ... with their weights."""
    names = "abcdefgh"
    sets = [TaskSet(name=names[i], weight=weight, tasks=tasks(counts[i], 100 * i)) for i, weight in enumerate(weights)]
    return TaskStream(sets, seed=3)


def indices(source, count):
    return [source.next().row["_ng_task_index"] for _ in range(count)]


def played(source, count, reward_of):
    """Draw tasks and tell at once how their groups went; the tasks, in order."""
    found = []
    for _ in range(count):
        draw = source.next()
        found.append(draw.row["_ng_task_index"])
        source.note(draw, reward_of(found[-1]))
    return found


def resumed(source, fresh, pending):
    """`fresh`, as it goes on from what `source` would leave on disk."""
    fresh.load_state_dict(json.loads(json.dumps(source.state_dict(pending))))
    return fresh


def test_one_set_comes_in_passes_of_the_order_that_its_seed_and_the_number_of_the_pass_give():
    expected = []
    for number in range(3):
        order = list(range(7))
        random.Random(f"5-{number}").shuffle(order)
        expected += order
    source = stream(7, seed=5)
    draws = [source.next() for _ in range(21)]
    assert [one.row["_ng_task_index"] for one in draws] == expected
    assert [one.number for one in draws] == list(range(21))
    assert [one.pass_number for one in draws] == [0] * 7 + [1] * 7 + [2] * 7
    assert {one.environment for one in draws} == {"tasks"}


def test_a_task_is_known_by_its_place_so_that_one_index_may_stand_for_two_rows():
    rows = [{"_ng_task_index": 4, "text": "first"}, {"_ng_task_index": 4, "text": "second"}]
    source = TaskStream([TaskSet(name="tasks", tasks=rows)], seed=0)
    draws = [source.next(), source.next()]
    assert sorted(one.row["text"] for one in draws) == ["first", "second"]
    assert source.draw_of(json.loads(json.dumps(draws[1].state()))) == draws[1]


def test_sets_are_mixed_evenly_by_weight():
    source = mixed([2, 1], [4, 4])
    assert "".join(source.next().environment for _ in range(9)) == "aabaabaab"


def test_weights_count_as_they_are_written():
    source = mixed([0.1, 0.2, 0.7], [5, 5, 5])
    assert Counter(source.next().environment for _ in range(1000)) == {"a": 100, "b": 200, "c": 700}


@given(weights=st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=1, max_size=8), draws=st.integers(1, 60))
def test_no_set_is_ever_a_whole_draw_away_from_its_share(weights, draws):
    source = mixed(weights, [3] * len(weights))
    counts = Counter()
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    for number in range(1, draws + 1):
        counts[source.next().environment] += 1
        for name, share in zip("abcdefgh", shares, strict=False):
            assert abs(counts[name] - share * number) < 1 + Fraction(1, 10**9)


def test_each_set_has_passes_of_its_own():
    source = mixed([2, 1], [4, 3])
    found = {"a": [], "b": []}
    for _ in range(36):
        draw = source.next()
        found[draw.environment].append(draw.row["_ng_task_index"])
    assert [sorted(found["a"][start : start + 4]) for start in range(0, 24, 4)] == [[0, 1, 2, 3]] * 6
    assert [sorted(found["b"][start : start + 3]) for start in range(0, 12, 3)] == [[100, 101, 102]] * 4
    assert len({tuple(found["a"][start : start + 4]) for start in range(0, 24, 4)}) > 1


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "data.train names no file of tasks"),
        ([TaskSet(name="a", tasks=[])], "'a' has no tasks; expected one at least"),
        ([TaskSet(name="a", tasks=tasks(1)), TaskSet(name="a", tasks=tasks(1))], "two files of tasks are named 'a'"),
        ([TaskSet(name="a", tasks=tasks(1), weight=float("inf"))], "the weight of 'a' is inf; expected a positive number"),
    ],
)
def test_sets_that_cannot_be_taken_are_refused(sets, message):
    with pytest.raises(ConfigError, match=message):
        TaskStream(sets, seed=0)


def test_a_solved_and_a_hopeless_task_rest_for_so_many_passes_and_come_again():
    source = stream(3, skip_passes=2)
    rewards = {0: [1.0, 1.0], 1: [1.0, 0.0], 2: [0.0, 0.0]}
    found = played(source, 8, rewards.get)
    assert sorted(found[:3]) == [0, 1, 2]
    assert found[3:5] == [1, 1]  # passes 1 and 2
    assert sorted(found[5:]) == [0, 1, 2]  # pass 3
    assert source.metrics() == {
        "num_tasks_unseen": 0,
        "num_tasks_learning": 1,
        "num_tasks_solved": 1,
        "num_tasks_hopeless": 1,
        "num_tasks_woken": 0,
    }


@pytest.mark.parametrize(
    ("rewards", "pool"),
    [
        ([1.0, 1.0, 1.0, 0.0], "solved"),  # 3/4 is at least skip_above
        ([0.5, 0.9, 2.0, 0.0], "hopeless"),  # 1/4 is at most skip_below
        ([1.0, 1.0, 0.0], "learning"),
        ([], "unseen"),  # all of its rollouts failed
    ],
)
def test_the_share_of_rollouts_that_solved_a_task_tells_its_pool(rewards, pool):
    source = stream(2, skip_above=0.75, skip_below=0.25, skip_passes=1)
    source.note(source.next(), rewards)
    counts = source.metrics()
    assert {name: counts[f"num_tasks_{name}"] for name in ("learning", "solved", "hopeless")} == {
        name: int(name == pool) for name in ("learning", "solved", "hopeless")
    }


def test_what_counts_as_solved_is_a_setting():
    source = stream(1, solved_reward=0.4)
    source.note(source.next(), [0.4, 0.5])
    assert source.metrics()["num_tasks_solved"] == 1


def test_a_task_that_becomes_learnable_again_rests_no_more():
    source = stream(2, skip_passes=1)
    found = played(source, 2, lambda task: [0.0])
    assert found[0] != found[1]
    again = played(source, 7, lambda task: [1.0, 0.0])  # one in pass 1, where all rest, then passes 2 to 4
    assert source.metrics()["num_tasks_learning"] == 2
    assert [sorted(again[start : start + 2]) for start in (1, 3, 5)] == [[0, 1]] * 3


def test_where_all_tasks_rest_each_pass_has_the_one_that_is_to_wake_first_and_it_is_counted():
    source = stream(4, skip_passes=3)
    first = played(source, 4, lambda task: [1.0])  # pass 0: each wakes in pass 4
    draws = []
    for _ in range(3):
        draws.append(source.next())
        source.note(draws[-1], [1.0])
    assert [one.pass_number for one in draws] == [1, 2, 3]
    woken = [one.row["_ng_task_index"] for one in draws]
    assert sorted(first) == [0, 1, 2, 3]
    assert len(set(woken)) == 3
    assert source.metrics()["num_tasks_woken"] == 3
    assert played(source, 1, lambda task: [1.0]) == list({0, 1, 2, 3} - set(woken))  # pass 4: the others rest until 5, 6, 7
    assert source.metrics()["num_tasks_woken"] == 3


def test_a_task_woken_early_is_not_taken_again_while_it_is_played():
    source = stream(3, skip_passes=5)
    played(source, 3, lambda task: [0.0])
    assert sorted(indices(source, 3)) == [0, 1, 2]


def test_without_a_curriculum_nothing_rests_and_there_are_no_pools():
    source = stream(2)
    assert sorted(played(source, 4, lambda task: [1.0])) == [0, 0, 1, 1]
    assert source.metrics() == {}


def test_pools_of_several_sets_are_counted_together():
    sets = [TaskSet(name="a", tasks=tasks(2)), TaskSet(name="b", tasks=tasks(3, 100))]
    source = TaskStream(sets, seed=0, curriculum=CurriculumSettings())
    for _ in range(2):
        source.note(source.next(), [1.0])
    assert (source.metrics()["num_tasks_unseen"], source.metrics()["num_tasks_solved"]) == (3, 2)


def test_draws_whose_groups_never_trained_come_first_again_in_their_order():
    source = mixed([2, 1], [3, 2])
    before = [source.next() for _ in range(7)]
    again = resumed(source, mixed([2, 1], [3, 2]), [before[5], before[2]])
    assert [again.next(), again.next()] == [before[2], before[5]]
    assert [again.next() for _ in range(5)] == [source.next() for _ in range(5)]


def test_a_second_kill_before_they_were_all_taken_again_keeps_the_rest():
    source = stream(5)
    before = [source.next() for _ in range(4)]
    once = resumed(source, stream(5), before)
    taken = once.next()
    twice = resumed(once, stream(5), [taken])
    assert [twice.next() for _ in range(4)] == before


def test_a_checkpoint_of_other_sets_is_refused():
    with pytest.raises(ConfigError, match=r"the checkpoint knows the task sets a, b, data.train has tasks"):
        stream(3).load_state_dict(mixed([1, 1], [2, 2]).state_dict())


def test_pools_go_on_where_they_were():
    rewards = {0: [1.0], 1: [1.0, 0.0], 2: [0.0], 3: []}
    source = stream(4, skip_passes=2)
    played(source, 4, rewards.get)
    again = resumed(source, stream(4, skip_passes=2), [])
    assert again.metrics() == source.metrics()
    assert again.state_dict() == source.state_dict()
    assert played(again, 20, rewards.get) == played(source, 20, rewards.get)


EVENTS = st.lists(st.sampled_from(["draw", "train", "train_newest", "kill"]), max_size=80)


@given(events=EVENTS, seed=st.integers(0, 3), weights=st.lists(st.sampled_from([0.3, 1, 2]), min_size=1, max_size=3))
def test_no_task_is_lost_or_trained_twice_over_any_kills(events, seed, weights):
    """The draws that trained, and those still under way, are together what a run without kills draws, each once."""
    counts = [4, 3, 5][: len(weights)]
    source, under_way, trained = mixed(weights, counts), [], []
    saved = source.state_dict()
    for event in events:
        if event == "draw":
            under_way.append(source.next())
        elif event == "kill":
            source, under_way = mixed(weights, counts), []
            source.load_state_dict(json.loads(json.dumps(saved)))
        elif under_way:
            trained.append(under_way.pop(0 if event == "train" else -1))
            saved = source.state_dict(under_way)  # a checkpoint after each update
    whole = mixed(weights, counts)
    expected = {one.number: one for one in (whole.next() for _ in range(len(events) + 1))}
    assert len({one.number for one in trained}) == len(trained)
    assert all(expected[one.number] == one for one in [*trained, *under_way])
    left = [one.number for one in [*under_way, *(source.next() for _ in range(len(events)))]]
    found = sorted([*(one.number for one in trained), *left])
    assert found == list(range(len(found)))  # nothing is missing before the last draw


@given(st.data())
def test_a_curriculum_never_hangs_and_gives_every_task_in_time(data):
    """Whatever the rewards: between two draws of a task lie at most skip_passes passes that have it not."""
    count, rest = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    source = stream(count, skip_passes=rest)
    passes = {task: [-1] for task in range(count)}
    for _ in range(data.draw(st.integers(1, 40))):
        draw = source.next()
        passes[draw.position].append(draw.pass_number)
        if data.draw(st.booleans()):
            source.note(draw, data.draw(st.lists(st.sampled_from([0.0, 1.0]), max_size=2)))
        if data.draw(st.integers(0, 9)) == 0:
            source = resumed(source, stream(count, skip_passes=rest), [])
    last = max(one[-1] for one in passes.values())
    for numbers in passes.values():
        gaps = [later - earlier for earlier, later in zip(numbers, [*numbers[1:], last], strict=True)]
        assert all(gap >= 1 for gap in gaps[:-1])  # at most once in a pass
        assert max(gaps) <= rest + 1
