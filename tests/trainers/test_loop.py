import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from gym_bridge.errors import PolicyError, ServerError
from gym_bridge.schemas.settings import SFTSettings
from gym_bridge.trainers.epochs import Dataset
from gym_bridge.trainers.loop import source_state
from gym_bridge.trainers.sft import SFTSource
from tests.trainers import loop_stage
from tests.trainers.loop_stage import Repeated, raising, terminating


@pytest.fixture
def sequence(training_sequence):
    return training_sequence("ppTT", [5, 6, 7, 2])


@pytest.fixture
def play(tiny_llama, tmp_path):
    """Train the tiny model in tmp_path/run from its last checkpoint on, and give the loop's result."""
    return lambda source, *, name="run", **options: loop_stage.play(tiny_llama, tmp_path / name, source, **options)


def checkpoints(tmp_path):
    return loop_stage.checkpoints(tmp_path / "run")


def metrics(tmp_path, name="run"):
    return loop_stage.metrics(tmp_path / name)


def test_it_trains_until_the_source_ends_and_saves_the_last_step(play, tmp_path, sequence):
    result = play(Repeated(sequence, num_steps=3))
    assert (result.steps, result.stopped) == (3, "data")
    assert checkpoints(tmp_path) == ["step_00000003"]
    assert result.checkpoint == tmp_path / "run" / "checkpoints" / "step_00000003"
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["given"] == 1.0 and line["step_s"] >= line["source_s"] >= 0 for line in lines)
    assert lines[2]["loss"] == result.metrics["loss"] < lines[0]["loss"]
    assert source_state(result.checkpoint) == {"taken": 3}


def test_it_stops_at_max_steps(play, tmp_path, sequence):
    source = Repeated(sequence)
    result = play(source, max_steps=2)
    assert (result.steps, result.stopped) == (2, "max_steps")
    assert source.taken == 2
    assert checkpoints(tmp_path) == ["step_00000002"]


def test_it_saves_every_so_many_steps_and_keeps_the_last(play, tmp_path, sequence):
    play(Repeated(sequence, num_steps=7), save_every=2, keep_last=3)
    assert checkpoints(tmp_path) == ["step_00000004", "step_00000006", "step_00000007"]


def test_the_seconds_of_a_checkpoint_stand_with_the_step_after_it(play, tmp_path, sequence):
    play(Repeated(sequence, num_steps=5), save_every=2)
    assert [line["step"] for line in metrics(tmp_path) if line.get("save_s", 0) > 0] == [3, 5]


def test_numbers_that_only_some_steps_tell_are_in_the_result(play, tmp_path, sequence):
    source = Repeated(sequence, num_steps=3)
    told = iter([{"reward": 0.5}, {}, {}])
    given = source.next
    source.next = lambda: None if (step := given()) is None else replace(step, metrics=next(told))
    assert play(source).metrics["reward"] == 0.5


def test_a_run_without_a_step_saves_nothing(play, tmp_path, sequence):
    result = play(Repeated(sequence, num_steps=0))
    assert (result.steps, result.checkpoint, result.metrics) == (0, None, {})
    assert checkpoints(tmp_path) == []


def test_a_finished_run_started_again_takes_no_step(play, tmp_path, sequence):
    play(Repeated(sequence, num_steps=2))
    written = (tmp_path / "run" / "checkpoints" / "step_00000002" / "model" / "model.safetensors").stat().st_mtime_ns
    result = play(Repeated(sequence, num_steps=2))
    assert (result.steps, result.metrics) == (2, {})
    assert (tmp_path / "run" / "checkpoints" / "step_00000002" / "model" / "model.safetensors").stat().st_mtime_ns == written
    assert len(metrics(tmp_path)) == 2


@pytest.mark.parametrize(
    "error",
    [PolicyError("broken"), ServerError("gone", url="http://a"), KeyboardInterrupt(), MemoryError("full")],
    ids=lambda one: type(one).__name__,
)
def test_an_error_saves_the_steps_taken_and_is_raised_again(play, tmp_path, sequence, error):
    with pytest.raises(type(error)):
        play(Repeated(sequence, at_step={3: raising(error)}))
    assert checkpoints(tmp_path) == ["step_00000002"]
    assert source_state(tmp_path / "run" / "checkpoints" / "step_00000002") == {"taken": 2}


def test_an_error_before_the_first_step_saves_nothing(play, tmp_path, sequence):
    with pytest.raises(PolicyError):
        play(Repeated(sequence, at_step={1: raising(PolicyError("broken"))}))
    assert checkpoints(tmp_path) == []


def test_sigterm_ends_the_run_after_the_step_under_way(play, tmp_path, sequence):
    before = signal.getsignal(signal.SIGTERM)
    result = play(Repeated(sequence), loss_fn=terminating(2))
    assert (result.steps, result.stopped) == (2, "signal")
    assert checkpoints(tmp_path) == ["step_00000002"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_does_not_wait_for_data_that_may_never_come(play, tmp_path, sequence):
    before = signal.getsignal(signal.SIGTERM)

    def wait():
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(600)

    started = time.monotonic()
    result = play(Repeated(sequence, at_step={2: wait}))
    assert time.monotonic() - started < 60
    assert (result.steps, result.stopped) == (1, "signal")
    assert checkpoints(tmp_path) == ["step_00000001"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("broken", ["max_steps", "error"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(play, tmp_path, training_sequence, dtype, broken):
    rows = Dataset.of([(training_sequence("ppTT", [5, number, number + 1, 2]),) for number in range(10, 17)])
    settings = SFTSettings.model_validate(
        {"data": {"train": "rows.jsonl"}, "algorithm": {"batch_size": 3, "epochs": 3}, "policy": {"microbatch_tokens": 8}}
    )
    play(SFTSource(rows, settings), name="whole", dtype=dtype, save_every=1, keep_last=99)
    if broken == "max_steps":
        play(SFTSource(rows, settings), dtype=dtype, max_steps=4)
    else:
        short = SFTSource(rows, settings)
        give, short.next = short.next, lambda: give() if short.state_dict()["step"] < 4 else raising(PolicyError("broken"))()
        with pytest.raises(PolicyError):
            play(short, dtype=dtype)
    assert checkpoints(tmp_path) == ["step_00000004"]
    assert play(SFTSource(rows, settings), dtype=dtype).steps == 9
    for file in ("model/model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json", "model/tokenizer.json"):
        paths = [tmp_path / name / "checkpoints" / "step_00000009" / file for name in ("run", "whole")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    names = ("step", "loss", "grad_norm", "lr", "epoch")
    resumed, whole = ([[line[name] for name in names] for line in metrics(tmp_path, run)] for run in ("run", "whole"))
    assert resumed == whole
    assert [line[0] for line in whole] == list(range(1, 10))


def test_ctrl_c_within_an_update_waits_for_its_end(play, tmp_path, sequence):
    source = Repeated(sequence)
    stepped = source.stepped

    def interrupted(version):
        if version == 2:
            os.kill(os.getpid(), signal.SIGINT)
        stepped(version)

    source.stepped = interrupted
    with pytest.raises(KeyboardInterrupt):
        play(source)
    assert checkpoints(tmp_path) == ["step_00000002"]
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]
    assert source_state(tmp_path / "run" / "checkpoints" / "step_00000002") == {"taken": 2}
