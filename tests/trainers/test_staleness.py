from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.trainers.staleness import Age, StalenessWindow


def ages(*pairs):
    """Groups in order of their starts: (batches before its start, whether it is whole)."""
    return [Age(number=number, started=started, whole=whole) for number, (started, whole) in enumerate(pairs)]


def test_without_staleness_only_one_batch_is_under_way():
    window = StalenessWindow(batch_size=4, max_staleness=0)
    assert [window.room(count) for count in (0, 1, 4, 5)] == [4, 3, 0, 0]


def test_a_batch_waits_until_enough_are_whole():
    window = StalenessWindow(batch_size=2, max_staleness=1)
    assert window.choose(ages((0, True), (0, False), (0, False), (0, False)), batch=0, count=2) is None
    assert window.choose(ages((0, True), (0, False), (0, True), (0, False)), batch=0, count=2) == [0, 2]


def test_the_oldest_go_first():
    window = StalenessWindow(batch_size=2, max_staleness=2)
    assert window.choose(ages((1, True), (0, True), (1, True)), batch=1, count=2) == [1, 0]


def test_a_batch_waits_for_a_group_that_would_be_too_old_in_the_next():
    window = StalenessWindow(batch_size=1, max_staleness=1)
    assert window.choose(ages((0, False), (1, True)), batch=1, count=1) is None
    assert window.choose(ages((0, True), (1, True)), batch=1, count=1) == [0]


def test_a_batch_waits_when_more_would_be_due_than_the_next_batches_hold():
    window = StalenessWindow(batch_size=1, max_staleness=2)
    held = ages((0, False), (0, False), (1, True))
    assert window.choose(held, batch=1, count=1) is None  # both of batch 0 would be due in batch 2


def test_what_is_left_of_a_task_set_is_taken_once_whole():
    window = StalenessWindow(batch_size=4, max_staleness=0)
    assert window.choose(ages((0, True), (0, False)), batch=0, count=4) is None
    assert window.choose(ages((0, True), (0, True)), batch=0, count=4) == [0, 1]


@given(batch_size=st.integers(1, 4), max_staleness=st.integers(0, 4), random=st.randoms(use_true_random=False))
def test_no_group_ever_trains_too_old_and_no_batch_waits_for_ever(batch_size, max_staleness, random):
    window = StalenessWindow(batch_size=batch_size, max_staleness=max_staleness)
    held: dict[int, Age] = {}
    count = 0
    for batch in range(30):
        dropped = False
        wanted = batch_size
        while wanted:
            for _ in range(window.room(len(held) + batch_size - wanted)):
                held[count] = Age(number=count, started=batch)
                count += 1
            while (chosen := window.choose(held.values(), batch=batch, count=wanted)) is None:
                running = [one.number for one in held.values() if not one.whole]
                number = random.choice(running)  # waiting is only right while something runs
                held[number] = Age(number=number, started=held[number].started, whole=True)
            assert len(chosen) == wanted
            for number in chosen:
                assert held[number].whole
                assert batch - held.pop(number).started <= max_staleness
            without_signal = 0 if dropped else random.randint(0, wanted)  # replaced once
            dropped, wanted = True, without_signal
