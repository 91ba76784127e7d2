import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.transforms.splitting import is_validation

TASKS = [f"task {index}".encode() for index in range(10_000)]


def validation(fraction: float, seed: int = 0) -> set[bytes]:
    return {task for task in TASKS if is_validation(task, fraction=fraction, seed=seed)}


def test_about_the_wanted_share_goes_to_validation():
    # the number is binomial with n = 10 000, p = 0.05: mean 500, standard deviation 21.8
    assert all(400 < len(validation(0.05, seed)) < 600 for seed in range(5))


def test_none_and_all_are_exact():
    assert validation(0.0) == set()
    assert validation(1.0) == set(TASKS)


def test_a_larger_share_only_adds_tasks():
    assert validation(0.05) < validation(0.1) < validation(0.5)


def test_another_seed_is_another_draw():
    # two draws of a half agree on about half of the tasks
    assert 4500 < len(validation(0.5, seed=1) ^ validation(0.5, seed=2)) < 5500
    assert validation(0.5, seed=-1) != validation(0.5, seed=1)


def test_another_process_decides_alike():
    program = (
        "from gym_bridge.transforms.splitting import is_validation\n"
        "print([n for n in range(100) if is_validation(b'task %d' % n, fraction=0.1, seed=7)])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str([n for n in range(100) if is_validation(b"task %d" % n, fraction=0.1, seed=7)])


@given(st.binary(max_size=40), st.floats(0, 1), st.integers())
def test_any_key_and_seed_can_be_split(key: bytes, fraction: float, seed: int):
    assert isinstance(is_validation(key, fraction=fraction, seed=seed), bool)
    assert is_validation(key, fraction=1.0, seed=seed)
    assert not is_validation(key, fraction=0.0, seed=seed)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(fraction: float):
    with pytest.raises(ConfigError, match="expected a share of the tasks"):
        is_validation(b"task", fraction=fraction, seed=0)
