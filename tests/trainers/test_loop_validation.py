"""When the loop validates, which checkpoint is best, when it stops early, and that a resumed run does as an uninterrupted one."""

import io
import re
import subprocess

import pytest

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.io.progress import Progress
from gym_bridge.io.run_directory import RunDirectory, model_directory_of
from tests.trainers import loop_stage
from tests.trainers.loop_stage import HELD_OUT, Given, Repeated, checkpoints, losses, metrics, raising, terminating


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def play(tiny_llama, training_sequence, run):
    """Train for `num_steps` steps in `run` from its last checkpoint on; `losses` are those that validation finds."""
    sequence = training_sequence("ppTT", [5, 6, 7, 2])

    def go(losses=None, *, num_steps=1000, at_step=None, where=run, **options):
        given = losses if isinstance(losses, Given) or losses is None else Given(losses)
        source = Repeated(sequence, num_steps=num_steps, at_step=at_step)
        return loop_stage.play(tiny_llama, where, source, validation=given, **options)

    return go


def best(run):
    """The step that checkpoints/best leads to."""
    return (run / "checkpoints" / "best").readlink().name


def validated(run):
    return [(step, loss) for step, what, loss in losses(run) if what == "held_out"]


@pytest.mark.parametrize(
    ("every", "end", "versions"),
    [(2, "data", [0, 2, 4, 5]), (2, "max_steps", [0, 2, 4, 5]), (5, "data", [0, 5]), (None, "max_steps", [0, 5])],
)
def test_it_validates_before_the_first_step_every_so_many_and_after_the_last(play, run, every, versions, end):
    given = Given([9.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    limit = {"num_steps": 5} if end == "data" else {"max_steps": 5}
    result = play(given, validate_every=every, **limit)
    assert (given.versions, result.stopped) == (versions, end)
    assert validated(run) == [(version, given.losses[version]) for version in versions]
    assert [line["step"] for line in metrics(run) if "grad_norm" in line] == [1, 2, 3, 4, 5]
    assert result.metrics[f"{HELD_OUT}accuracy"] == -1.0
    assert result.metrics["given"] == 1.0  # those of the step are there too
    assert all(line["validation_s"] >= 0 for line in metrics(run) if f"{HELD_OUT}loss" in line)


def test_a_finished_run_started_again_validates_nothing_anew(play, run):
    play([9.0] * 5, num_steps=4, validate_every=3, save_every=3)
    again = Given({})
    assert play(again, num_steps=4, validate_every=3, save_every=3).steps == 4
    assert (again.versions, [step for step, _ in validated(run)]) == ([], [0, 3, 4])


def test_a_run_whose_last_step_was_saved_before_its_data_ended_has_one_line_of_its_last_validation(play, run):
    play([9.0] * 5, num_steps=4, save_every=4)
    before = metrics(run)
    play([9.0] * 5, num_steps=4, save_every=4)
    assert metrics(run) == before


@pytest.mark.parametrize(("watch_for", "expected"), [("lowest", "step_00000004"), ("highest", "step_00000006")])
def test_the_best_checkpoint_is_kept_beside_the_last_one(play, run, watch_for, expected):
    given = [0.1, 0, 7.0, 0, 3.0, 0, 8.0, 0, 5.0, 5.0]
    play(given, num_steps=9, validate_every=2, keep_best=True, watch_for=watch_for)
    assert checkpoints(run) == ["best", expected, "step_00000009"]
    assert best(run) == expected
    assert model_directory_of(run / "checkpoints" / "best") == run / "checkpoints" / expected / "model"
    assert model_directory_of(run) == run / "checkpoints" / "step_00000009" / "model"


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_a_number_that_is_not_finite_is_never_the_best(play, run, broken):
    play([9.0, broken, 3.0, 4.0], num_steps=3, validate_every=1, keep_best=True)
    assert best(run) == "step_00000002"


@pytest.mark.parametrize("asked", ["held_out/accuracy", "validation/held_out/accuracy"])
def test_the_watched_metric_is_the_one_that_is_named(play, run, asked):
    losses = [9.0, 1.0, 3.0, 2.0]  # accuracies: -1, -3, -2
    play(losses, num_steps=3, validate_every=1, keep_best=True, watch=asked, watch_for="lowest")
    assert best(run) == "step_00000002"


def test_an_unknown_metric_is_refused_with_those_that_there_are(play, run):
    message = r"trainer.watch: 'held_out/los' is no validation metric of this run; there are held_out/loss, held_out/accuracy"
    with pytest.raises(ConfigError, match=message):
        play([9.0], watch="held_out/los", num_steps=2)
    assert checkpoints(run) == []


class Found:
    """A validation that finds the given metrics, one after the other, under `validation/tasks/`."""

    def __init__(self, *metrics):
        self.metrics = iter(metrics)

    def run(self, policy):
        return {f"validation/tasks/{name}": value for name, value in next(self.metrics).items()}


@pytest.fixture
def play_found(tiny_llama, training_sequence, run):
    """Train for as many steps as validations find something after, one before each but the first."""

    def go(*metrics, **settings):
        source = Repeated(training_sequence("pT", [5, 6]), num_steps=len(metrics) - 1)
        return loop_stage.play(tiny_llama, run, source, validation=Found(*metrics), validate_every=1, **settings)

    return go


def test_without_a_loss_or_a_reward_nothing_is_best_unless_asked_for(play_found):
    assert play_found({"length": 0.5}, {"length": 0.7}).metrics["validation/tasks/length"] == 0.7
    with pytest.raises(ConfigError, match="no loss or reward to watch; name one of tasks/length"):
        play_found({"length": 0.5}, {"length": 0.5}, {"length": 0.5}, keep_best=True)


def test_of_played_tasks_the_highest_reward_is_best(play_found, run):
    play_found(*({"reward": one, "num_failed": 0} for one in (0.9, 0.1, 0.3, 0.2)), keep_best=True)
    assert best(run) == "step_00000002"


@pytest.mark.parametrize("watch", [None, "tasks/reward"])
def test_a_validation_whose_rollouts_all_failed_is_not_the_best_and_ends_nothing(play_found, run, watch):
    rewards = (0.1, 0.3, 0.4, None, 0.2)
    metrics = [{"num_failed": 2} if one is None else {"reward": one, "num_failed": 0} for one in rewards]
    result = play_found(*metrics, keep_best=True, patience=2, watch=watch, watch_for="highest")
    assert (result.steps, result.stopped, best(run)) == (4, "patience", "step_00000002")


def test_a_watched_metric_that_no_set_has_is_refused_although_rollouts_failed(play_found):
    with pytest.raises(ConfigError, match="'tasks/rewards' is no validation metric of this run; there are tasks/reward, tasks/num"):
        play_found({"reward": 0.5, "num_failed": 1}, {"reward": 0.5, "num_failed": 1}, watch="tasks/rewards")


@pytest.mark.parametrize("setting", [{"validate_every": 2}, {"watch": "a/loss"}, {"keep_best": True}, {"watch_for": "highest"}])
def test_settings_of_validation_without_held_out_data_are_refused(play, setting):
    (name,) = setting
    with pytest.raises(ConfigError, match=f"trainer.{name} has no effect without held-out data; set data.validation"):
        play(None, num_steps=1, **setting)


def test_patience_without_regular_validations_is_refused(play):
    with pytest.raises(ConfigError, match=r"trainer.patience counts the validations of trainer.validate_every"):
        play([9.0] * 3, num_steps=2, patience=1)


IN_VAIN = [0.5, 0, 4.0, 0, 5.0, 0, 3.0, 0, 3.0, 0, float("nan"), 0, 1.0]
"""Best at 6; 8 is no better, 10 no number."""


def test_patience_ends_a_run_after_so_many_validations_without_a_better_one(play, run):
    given = Given(IN_VAIN)
    result = play(given, validate_every=2, patience=2, keep_best=True)
    assert (result.steps, result.stopped, given.versions) == (10, "patience", [0, 2, 4, 6, 8, 10])
    assert checkpoints(run) == ["best", "step_00000006", "step_00000010"]
    again = play(Given({}), validate_every=2, patience=2, keep_best=True)
    assert (again.steps, again.stopped) == (10, "patience")
    more = play(Given(IN_VAIN), validate_every=2, patience=3, keep_best=True, max_steps=12)
    assert (more.steps, best(run)) == (12, "step_00000012")


@pytest.mark.parametrize("parts", [{"max_steps": 7}, {"max_time_s": 1e-9}])
def test_a_run_in_parts_stops_where_an_uninterrupted_one_does_with_the_same_lines(play, run, tmp_path, parts):
    settings = {"validate_every": 2, "patience": 2, "keep_best": True}
    whole = tmp_path / "whole"
    play(IN_VAIN, where=whole, **settings)
    stops = []
    for _ in range(12):
        found = [*IN_VAIN[:7], 9.0, *IN_VAIN[8:]]  # at 7, where only a part ends
        stops.append(play(found, **settings, **(parts if "max_time_s" in parts or len(stops) < 1 else {})).stopped)
        if stops[-1] == "patience":
            break
    assert set(stops[:-1]) == {next(iter(parts)).removesuffix("_s").replace("max_time", "time")}
    assert [one for one in losses(run) if one[:2] != (7, "held_out")] == losses(whole)
    assert (checkpoints(run), best(run)) == (checkpoints(whole), best(whole))
    again = play(Given(IN_VAIN), **settings)
    assert (again.steps, again.stopped) == (10, "patience")
    assert losses(run)[-1:] == losses(whole)[-1:]


def test_a_time_budget_ends_after_at_least_one_step_of_each_start(play, run):
    for expected in (1, 2, 3):
        result = play(None, max_time_s=1e-9)
        assert (result.steps, result.stopped, checkpoints(run)) == (expected, "time", [f"step_{expected:08d}"])
    assert play(None, max_time_s=3600.0, max_steps=5).stopped == "max_steps"


@pytest.mark.parametrize("error", [PolicyError("broken"), KeyboardInterrupt()], ids=repr)
def test_what_an_error_kept_from_being_validated_is_validated_when_the_run_goes_on(play, run, tmp_path, error):
    settings = {"validate_every": 2, "save_every": 1, "num_steps": 6}
    with pytest.raises(type(error)):
        play([9.0, 0, 8.0, 0, error, 0, 7.0], **settings)
    assert "step_00000004" in checkpoints(run)
    play([9.0, 0, 8.0, 0, 9.0, 0, 7.0], **settings)
    play([9.0, 0, 8.0, 0, 9.0, 0, 7.0], where=tmp_path / "whole", **settings)
    assert losses(run) == losses(tmp_path / "whole")


def test_sigterm_saves_without_validating_and_the_next_start_makes_up_for_it(play, run, tmp_path):
    told = Given([9.0] * 5)
    result = play(told, validate_every=2, num_steps=4, loss_fn=terminating(2))
    assert (result.steps, result.stopped, told.versions) == (2, "signal", [0])
    play([9.0] * 5, validate_every=2, num_steps=4)
    play([9.0] * 5, validate_every=2, num_steps=4, where=tmp_path / "whole")
    assert losses(run) == losses(tmp_path / "whole")


def test_a_link_that_a_kill_left_on_an_older_best_is_put_right_and_what_it_left_is_removed(play, run):
    settings = {"validate_every": 1, "keep_best": True, "save_every": 1}
    play([9.0, 3.0, 2.0, 4.0], max_steps=3, keep_last=3, **settings)
    directory = RunDirectory(run)
    directory.mark_best(1)
    (run / "checkpoints" / ".step_00000009.saving").mkdir()
    (run / "checkpoints" / ".best").symlink_to("step_00000001")
    play([9.0, 3.0, 2.0, 4.0, 5.0], max_steps=4, **settings)
    assert checkpoints(run) == ["best", "step_00000002", "step_00000004"]
    assert best(run) == "step_00000002"


def test_a_new_best_that_cannot_be_marked_is_one_error_and_the_checkpoints_stay_whole(play, run):
    (run / "checkpoints" / ".best").mkdir(parents=True)  # in the way of the new link
    with pytest.raises(ConfigError, match=r"cannot write .*best: "):
        play([9.0, 3.0], num_steps=1, validate_every=1, keep_best=True)
    assert "step_00000001" in checkpoints(run)


def test_an_error_of_the_source_saves_the_state_of_the_watch(play, run):
    with pytest.raises(PolicyError):
        play([9.0, 4.0, 5.0, 6.0], validate_every=1, patience=2, at_step={3: raising(PolicyError("broken"))})
    result = play([9.0, 4.0, 5.0, 6.0], validate_every=1, patience=2)
    assert (result.steps, result.stopped) == (3, "patience")
    assert validated(run) == [(0, 9.0), (1, 4.0), (2, 5.0), (3, 6.0)]


def test_the_display_shows_loss_tokens_a_second_and_the_validation(play, run):
    stream = io.StringIO()
    play([9.0, 0, 2.5], num_steps=2, progress=Progress("train sft", total=2, quiet=False, stream=stream))
    (line,) = stream.getvalue().splitlines()
    assert re.fullmatch(r"train sft: 2/2 in \d+ s \(.*/s\) validation/held_out/loss 2\.5 loss [\d.]+ tokens/s [\d.e+]+", line)


def test_a_disk_that_becomes_read_only_is_one_error_and_the_last_checkpoint_goes_on(play, tiny_disk, tmp_path):
    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(tiny_disk)], check=True)

    remount("size=8m")
    run = tiny_disk / "run"
    try:
        with pytest.raises((ConfigError, PolicyError), match=r"cannot .*Read-only file system"):
            play([9.0] * 5, where=run, num_steps=4, save_every=2, validate_every=2, at_step={4: lambda: remount("ro")})
        assert checkpoints(run) == ["step_00000002"]
    finally:
        remount("rw")
    assert play([9.0] * 5, where=run, num_steps=4, save_every=2, validate_every=2).steps == 4
    play([9.0] * 5, where=tmp_path / "whole", num_steps=4, save_every=2, validate_every=2)
    assert losses(run) == losses(tmp_path / "whole")
