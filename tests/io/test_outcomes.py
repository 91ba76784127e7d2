"""The compact table of outcomes answers as a dict of them would."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_bridge.io import outcomes as module
from gym_bridge.io.outcomes import Outcomes
from gym_bridge.schemas.rollouts import RolloutKey

index = st.integers(0, 3) | st.sampled_from([-1, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**70])
keys = st.builds(RolloutKey, index, index)
event = st.tuples(keys, st.sampled_from(["reward", "truncated", "model_error", "tool_error", "terminal"]))


@settings(max_examples=200, deadline=None)
@given(st.lists(event, max_size=40), st.integers(1, 6))
def test_the_table_says_what_a_dict_would_say(events: list[tuple[RolloutKey, str]], max_recent: int):
    table, known, attempts, rewards, terminal = Outcomes(), {}, {}, [], set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_RECENT", max_recent)  # so that few rollouts are merged often
        for key, what in events:
            if known.get(key) in ("completed", "truncated"):
                assert table.is_written(key)
            elif what in ("reward", "truncated"):
                table.record_reward(key, 0.5, truncated=what == "truncated")
                known[key] = "truncated" if what == "truncated" else "completed"
                rewards.append(0.5)
                terminal.discard(key)
            else:
                table.record_failure(key, what, terminal=what == "terminal")
                known[key] = what
                attempts[key] = attempts.get(key, 0) + 1
                if what == "terminal":
                    terminal.add(key)
        seen = [key for key, _ in events]
    assert table == known
    assert len(table) == len(known)
    assert [table.get(key) for key in seen] == [known.get(key) for key in seen]
    assert [table.num_failed_attempts(key) for key in seen] == [attempts.get(key, 0) for key in seen]
    assert {key for key in seen if table.is_terminal(key)} == terminal
    assert table.num_with_reward == len(rewards)
    for task in {key.task_index for key in seen} | {1}:
        last = max((key.rollout_index for key in known if key.task_index == task), default=-1)
        assert table.next_rollout_index(task) == max(last, -1) + 1
    ledger = table.ledger(iter([*known, RolloutKey(5, 5)]))
    assert (ledger.requested, ledger.not_attempted) == (len(known) + 1, 1)


def test_a_table_of_nothing():
    table = Outcomes()
    key = RolloutKey(0, 0)
    assert (len(table), table.is_done(key), table.is_terminal(key), table.is_written(key)) == (0, False, False, False)
    assert (table.num_failed_attempts(key), table.next_rollout_index(0), math.isnan(table.mean_reward)) == (0, 0, True)
    with pytest.raises(KeyError):
        table[key]


def test_attempts_with_and_without_their_number_are_counted_once():
    table, key = Outcomes(), RolloutKey(2, 1)
    counts = []
    for attempt in (None, 1, 1, None, 0, 6):
        table.record_failure(key, "model_error", attempt=attempt)
        counts.append(table.num_failed_attempts(key))
    assert counts == [1, 2, 2, 3, 3, 7]
    table.record_reward(key, 1.0, truncated=False)
    table.record_failure(key, "model_error", attempt=9)
    assert (table[key], table.num_failed_attempts(key), table.is_done(key)) == ("completed", 10, True)


def test_a_failure_in_the_rollouts_file_holds_its_place_for_good():
    table, key = Outcomes(), RolloutKey(0, 0)
    table.record_failure(key, "no_reward", written=True)
    assert (table.is_written(key), table.is_terminal(key), table.is_done(key)) == (True, True, False)
