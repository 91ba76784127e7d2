"""How the end of a training is judged by the exit codes of its processes."""

import pytest

from gym_bridge.cluster.services import GONE
from gym_bridge.cluster.supervisor import STOPPED, exit_code

KILLED, FAILED, MISTAKEN = 137, 1, 2


@pytest.mark.parametrize(
    ("codes", "told", "expected"),
    [
        ([0, 0], False, 0),
        ([0, GONE], False, 0),  # it had ended already
        ([0, 0], True, 0),
        ([FAILED, KILLED], False, None),
        ([STOPPED, KILLED], False, None),  # the first one waited for rollouts, and was stopped
        ([GONE, FAILED], False, None),
        ([MISTAKEN, STOPPED], False, MISTAKEN),
        ([STOPPED, FAILED], False, FAILED),
        ([KILLED, FAILED], True, FAILED),  # it took too long to save
        ([KILLED, STOPPED], True, 1),
    ],
)
def test_only_a_death_by_a_signal_or_with_a_machine_begins_anew(codes, told, expected):
    assert exit_code(codes, told=told) == expected
