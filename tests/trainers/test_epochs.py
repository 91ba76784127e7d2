"""Epochs over one file and over weighted ones. The second token of a sequence tells which row it is."""

import json
from collections import Counter

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.trainers.epochs import Dataset, EpochSource


@pytest.fixture
def units(training_sequence):
    """units(10, 15): the rows 10 to 14."""
    return lambda first, end: [(training_sequence("pTT", [9, number, 2]),) for number in range(first, end)]


def source_of(data, *, batch_size=2, epochs=1, seed=0):
    return EpochSource(data, batch_size=batch_size, epochs=epochs, seed=seed, policy=PolicySettings())


def steps_of(source):
    """The rows of every step that is left."""
    found = []
    while (step := source.next()) is not None:
        found.append([int(one.token_ids[1]) for batch in step.microbatches for one in batch])
        source.stepped(len(found))
    return found


def epochs_of(data, *, epochs, seed=0):
    """The rows of each epoch, in its order."""
    return [[int(data.units[index][0].token_ids[1]) for index in data.of_epoch(epoch, seed=seed)] for epoch in range(epochs)]


def test_an_epoch_sees_every_row_once_and_ends_with_what_is_left(units):
    source = source_of(Dataset.of(units(10, 15)))
    steps = steps_of(source)
    assert [len(step) for step in steps] == [2, 2, 1]
    assert sorted(row for step in steps for row in step) == [10, 11, 12, 13, 14]
    assert source.total_steps == 3


def test_each_epoch_has_an_order_of_its_own_and_the_seed_tells_which(units):
    data = Dataset.of(units(10, 15))
    epochs = epochs_of(data, epochs=3)
    assert all(sorted(epoch) == [10, 11, 12, 13, 14] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs_of(data, epochs=3) == epochs != epochs_of(data, epochs=3, seed=1)


def test_a_step_tells_its_epoch_and_its_rows(units):
    source = source_of(Dataset.of(units(10, 15)), epochs=2)
    told = []
    while (step := source.next()) is not None:
        told.append((round(step.metrics["epoch"], 3), step.metrics["num_sequences"]))
        source.stepped(len(told))
    assert told == [(0, 2), (0.333, 2), (0.667, 1), (1, 2), (1.333, 2), (1.667, 1)]


def test_a_unit_of_several_sequences_is_one_row_and_stays_together(units):
    (first,), (second,), (third,) = units(10, 13)
    source = source_of(Dataset.of([(first, second), (third,)]), batch_size=1)
    assert sorted(map(sorted, steps_of(source))) == [[10, 11], [12]]


def test_a_file_of_weight_2_is_read_twice_and_one_of_a_quarter_gives_another_quarter_each_time(units):
    data = Dataset.of(units(10, 13), units(20, 28), weights=[2, 0.25])
    epochs = epochs_of(data, epochs=8)
    for epoch in epochs:
        counts = Counter(epoch)
        assert [counts.pop(row) for row in (10, 11, 12)] == [2, 2, 2]
        assert sorted(counts.values()) == [1, 1]
    quarters = [{row for row in epoch if row >= 20} for epoch in epochs]
    assert set().union(*quarters[:4]) == set(range(20, 28))
    assert quarters[4:] == quarters[:4]
    assert quarters[0] != {row for row in epochs_of(data, epochs=1, seed=1)[0] if row >= 20}


@pytest.mark.parametrize(("weight", "sizes"), [(1.5, [4, 5, 4, 5]), (0.1, [0, 0, 0, 1]), (1 / 3, [1, 1, 1, 1])])
def test_what_a_weight_leaves_over_comes_in_a_later_epoch(units, weight, sizes):
    assert [len(epoch) for epoch in epochs_of(Dataset.of(units(10, 13), weights=[weight]), epochs=4)] == sizes


def test_epochs_without_a_row_have_no_step(units):
    source = source_of(Dataset.of(units(10, 13), weights=[0.1]), epochs=4)
    step = source.next()
    assert step is not None
    assert (source.total_steps, step.metrics["epoch"]) == (1, 3)
    with pytest.raises(ConfigError, match=r"the weights of data\.train leave no row in any epoch; raise them"):
        source_of(Dataset.of(units(10, 13), weights=[0.1]), epochs=3)


@pytest.mark.parametrize("weights", [[1, 1], [1.5, 0.4]])
def test_a_source_goes_on_after_the_last_step_taken(units, weights):
    data = Dataset.of(units(10, 15), units(20, 23), weights=weights)
    whole = steps_of(source_of(data, epochs=3))
    for taken in range(len(whole)):
        first = source_of(data, epochs=3)
        for version in range(taken):
            first.next()
            first.stepped(version)
        first.next()  # asked for, never taken
        second = source_of(data, epochs=3)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert steps_of(second) == whole[taken:]
