"""Alarms begin with one warning, end by themselves, and remember what they need over a restart."""

import json
import logging
import re

import pytest

from gym_bridge.io.metrics import JsonlMetrics
from gym_bridge.schemas.settings import AlarmSettings
from gym_bridge.trainers.alarms import FIRST_STEPS, AlarmedMetrics, Alarms


@pytest.fixture
def warnings(caplog):
    """Texts of the warnings so far."""
    caplog.set_level(logging.WARNING, logger="gym_bridge.trainers.alarms")
    return lambda: [record.getMessage() for record in caplog.records]


def restarted(alarms):
    again = Alarms(AlarmSettings())
    again.load_state_dict(json.loads(json.dumps(alarms.state_dict())))
    return again


@pytest.mark.parametrize(
    ("name", "fine", "ill", "told"),
    [
        ("entropy", 0.05, 0.049, "entropy has collapsed: 0.049 nats a token, below trainer.alarms.min_entropy=0.05"),
        ("kl", 10.0, 10.5, "drifted from the reference: a KL of 10.5 nats a token, above trainer.alarms.max_kl=10;"),
        ("gap", 1.05, 1.06, r"sampler and trainer disagree: .* of 1.06, above trainer.alarms.max_gap=1.05; try policy.compute"),
    ],
)
def test_a_number_past_its_limit_is_an_alarm_with_one_warning_each_time_it_begins(warnings, name, fine, ill, told):
    alarms = Alarms(AlarmSettings())
    found = [alarms.check({name: value, "staleness_max": 0}) for value in (fine, ill, ill, fine, ill)]
    on = {f"alarm/{name}": 1.0}
    assert found == [{}, on, on, {}, on]
    assert len(warnings()) == 2
    assert re.search(told, warnings()[0])


@pytest.mark.parametrize("moved_on", [{}, {"staleness_max": 1}], ids=["a later update on a batch", "a stale batch"])
def test_a_gap_is_the_samplers_only_where_the_policy_has_not_moved_on(warnings, moved_on):
    assert Alarms(AlarmSettings()).check({"gap": 9.0, **moved_on}) == {}
    assert warnings() == []


def test_rewards_that_hardly_differ_any_more_are_an_alarm_with_their_mean(warnings):
    alarms = Alarms(AlarmSettings())
    for spread in (0.5, 0.4, 0.6, 0.5, 0.5):
        assert alarms.check({"reward": 0.5, "reward_std": spread}) == {}
    assert [alarms.check({"reward": 0.98, "reward_std": 0.04}) for _ in range(4)] == [{}] * 4
    again = restarted(alarms)
    assert again.check({"reward": 0.98, "reward_std": 0.04}) == {"alarm/spread": 1.0}
    assert warnings()[0].startswith(
        "the rewards hardly differ any more: a deviation of 0.04 over the last 5 batches, 0.08 of the 0.5 of the first 5, below "
        "trainer.alarms.min_spread_ratio=0.1, at a mean reward of 0.98"
    )
    assert again.check({"reward": 0.9, "reward_std": 0.3}) == {}
    off = Alarms(AlarmSettings(min_spread_ratio=None))
    assert [off.check({"reward": 1.0, "reward_std": spread}) for spread in [0.5] * 5 + [0.0] * 9] == [{}] * 14


def test_groups_without_a_signal_are_an_alarm_once_they_are_nine_in_ten_of_five_batches(warnings):
    alarms = Alarms(AlarmSettings())
    batch = {"num_groups": 8, "num_groups_without_signal": 8}
    assert [alarms.check(batch) for _ in range(4)] == [{}] * 4
    again = restarted(alarms)
    assert again.check(batch) == {"alarm/signal": 1.0}
    assert warnings()[0].startswith(
        "100% of the groups of the last 5 batches had no signal, above trainer.alarms.max_without_signal=0.9"
    )
    assert [again.check({**batch, "num_groups_without_signal": 2}) for _ in range(2)] == [{}, {}]


def test_failures_of_a_batch_are_an_alarm(warnings):
    alarms = Alarms(AlarmSettings())
    found = [alarms.check({"num_rollouts": 10, "num_failed": failed}) for failed in (2, 3, 0)]
    assert found == [{}, {"alarm/failures": 1.0}, {}]
    assert warnings()[0].startswith("30% of a batch's rollouts failed, above trainer.alarms.max_failed=0.2")


def test_metrics_without_a_number_leave_its_alarm_as_it_is(warnings):
    alarms = Alarms(AlarmSettings())
    alarms.check({"entropy": 0.0})
    assert alarms.check({"loss": 1.0}) == {}
    assert alarms.check({"entropy": float("nan")}) == {}
    assert alarms.check({"entropy": 0.0}) == {"alarm/entropy": 1.0}
    assert len(warnings()) == 1


def test_what_is_null_is_not_watched(warnings):
    names = ("min_entropy", "max_kl", "max_gap", "min_length_ratio", "max_without_signal", "max_failed", "heldout_patience")
    alarms = Alarms(AlarmSettings.model_validate(dict.fromkeys(names)))
    for step in range(20):
        metrics = {"entropy": 0.0, "kl": 99.0, "gap": 9.0, "completion_tokens": 100.0 if step < 9 else 1.0, "reward": float(step)}
        assert alarms.check({**metrics, "validation/a/reward": -float(step)}) == {}
    assert warnings() == []


def test_completions_much_shorter_than_those_of_the_first_steps_are_an_alarm(warnings):
    alarms = Alarms(AlarmSettings(min_length_ratio=0.5))
    first = [alarms.check({"completion_tokens": tokens}) for tokens in (60.0, 20.0, 40.0, 50.0, 30.0)]  # 40 on average
    assert first == [{}] * FIRST_STEPS == [{}] * 5
    assert alarms.check({"completion_tokens": 20.0}) == {}
    assert alarms.check({"completion_tokens": 19.0}) == {"alarm/length": 1.0}
    (told,) = warnings()
    assert "19 tokens on average, 0.47 of the 40 of the first 5 steps, below trainer.alarms.min_length_ratio=0.5" in told


def test_completions_that_were_empty_from_the_start_cannot_collapse():
    alarms = Alarms(AlarmSettings())
    assert [alarms.check({"completion_tokens": 0.0}) for _ in range(7)] == [{}] * 7


def validations(alarms, rewards, held_out, *, name="a"):
    """What each validation is told, with two steps of the training reward before each; the first comes before all steps."""
    found = []
    for reward, validated in zip([None, *rewards], held_out, strict=True):
        for value in [] if reward is None else [reward - 0.1, reward + 0.1]:
            assert alarms.check({"reward": value}) == {}
        found.append(alarms.check({f"validation/{name}/reward": validated, f"validation/{name}/solved": 0.0}))
    return found


def test_training_that_rises_while_the_held_out_tasks_fall_is_an_alarm(warnings):
    alarms = Alarms(AlarmSettings(heldout_patience=2))
    found = validations(alarms, [0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2, 0.1])
    on = {"alarm/held_out/a": 1.0}
    assert found == [{}, {}, {}, on, on]  # the first steps have nothing before them to rise from
    (told,) = warnings()
    assert "rose while that of validation/a fell, 2 validations in a row, to 0.2" in told
    assert validations(alarms, [0.5], [0.3, 0.4]) == [{}, {}]


@pytest.mark.parametrize(
    ("rewards", "held_out"),
    [
        ([0.1, 0.2, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]),  # training stood still, then the held-out one
        ([0.5, 0.4, 0.3, 0.2, 0.1], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),  # both fall
        ([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),  # both rise
    ],
)
def test_training_and_held_out_that_go_the_same_way_are_no_alarm(rewards, held_out):
    assert validations(Alarms(AlarmSettings(heldout_patience=2)), rewards, held_out) == [{}] * 6


def test_each_held_out_set_is_looked_at_for_itself_and_one_that_is_missing_waits():
    alarms = Alarms(AlarmSettings(heldout_patience=1))
    alarms.check({"validation/a/reward": 0.5, "validation/b/reward": 0.5})
    alarms.check({"reward": 0.1})
    alarms.check({"validation/a/reward": 0.5, "validation/b/reward": 0.5})
    alarms.check({"reward": 0.2})
    assert alarms.check({"validation/a/reward": 0.6, "validation/b/reward": 0.4}) == {"alarm/held_out/b": 1.0}
    alarms.check({"reward": 0.3})
    assert alarms.check({"validation/a/reward": 0.5}) == {"alarm/held_out/a": 1.0}


def test_a_restart_forgets_nothing_and_warns_of_nothing_twice(warnings):
    alarms, whole = Alarms(AlarmSettings()), Alarms(AlarmSettings())
    lines = [{"completion_tokens": 10.0, "reward": 0.1 * step, "entropy": 0.01} for step in range(5)]
    lines += [{"validation/a/reward": 0.9}]
    for step in range(5):
        lines += [{"reward": 0.5 + step / 10}, {"completion_tokens": 2.0}, {"validation/a/reward": 0.8 - step / 10}]
    expected = [whole.check(line) for line in lines]
    num_warnings = len(warnings())
    found = []
    for line in lines:
        found.append(alarms.check(line))
        alarms = restarted(alarms)
    assert found == expected
    assert sum(map(len, found)) > 10
    assert len(warnings()) == 2 * num_warnings == 6


def test_alarms_are_written_beside_the_numbers_that_raised_them(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = AlarmedMetrics(JsonlMetrics(path), Alarms(AlarmSettings()))
    writer.write(1, {"entropy": 0.5})
    writer.write(2, {"entropy": 0.0, "gap": 1.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "entropy": 0.5},
        {"step": 2, "entropy": 0.0, "gap": 1.0, "alarm/entropy": 1.0},
    ]
