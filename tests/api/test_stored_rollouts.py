"""The sources of steps that play nothing, by their settings."""

import json
from dataclasses import replace

import pytest

from gym_bridge.api.stored_rollouts import replayed_steps, stored_digests, stored_groups
from gym_bridge.api.training import train
from gym_bridge.errors import ConfigError
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.io.step_records import write_step
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.rollouts import Rollout, RolloutKey
from gym_bridge.schemas.seams import TrainStep
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.tokens.trajectory import build_trajectory, training_sequences
from tests.trainers.loop_stage import metrics
from tests.trainers.stored_stage import inline_row, row_of, turns_of, write_log, write_rows


def chosen(data, **sections):
    return GRPOSettings.model_validate({"data": data, **sections})


def test_data_rollouts_gives_the_groups_of_the_file(tmp_path):
    path = write_log(tmp_path / "R.jsonl", [(0, 0, 0), (0, 1, 0), (1, 0, 0)])
    stream = stored_groups(chosen({"rollouts": path}))
    assert [len(one.group.rollouts) for one in stream.take(9)] == [2, 1]
    stream.close()


def test_data_groups_gives_ranked_groups(tmp_path):
    line = {"rollouts": [inline_row(0, 0), inline_row(0, 1)], "ranks": [1, 0]}
    stream = stored_groups(chosen({"groups": write_rows(tmp_path / "groups.jsonl", [line])}))
    assert [rollout.reward for rollout in stream.take(1)[0].group.rollouts] == [0.0, 1.0]
    stream.close()


@pytest.mark.parametrize(("name", "value"), [("estimator", "components"), ("credit", "turn")])
def test_ranks_cannot_be_taken_apart(tmp_path, name, value):
    settings = chosen({"groups": tmp_path / "groups.jsonl"}, algorithm={name: value})
    with pytest.raises(ConfigError, match=rf"algorithm\.{name}={value} needs rewards in numbers"):
        stored_groups(settings)


def test_the_digest_tells_rows_and_tokens_from_others(tmp_path):
    settings = chosen({"rollouts": write_log(tmp_path / "R.jsonl", [(0, 0, 0)])})
    first = stored_digests(settings)
    assert list(first) == ["data"]
    assert stored_digests(settings) == first
    chunk = tmp_path / "R.tokens" / "chunk-000000.npz"
    tokens = chunk.read_bytes()
    chunk.write_bytes(tokens + b"\0")
    assert stored_digests(settings) != first
    chunk.write_bytes(tokens)
    write_rows(tmp_path / "R.jsonl", [row_of(0, 0, reward=0.5)])
    assert stored_digests(settings) != first


def test_the_digest_of_groups_is_over_the_files_that_they_name_too(tmp_path):
    write_rows(tmp_path / "R.jsonl", [inline_row(0, 0)])
    line = {"rollouts": [{"_ng_task_index": 0, "_ng_rollout_index": 0}], "ranks": [0], "rollouts_path": "R.jsonl"}
    settings = chosen({"groups": write_rows(tmp_path / "groups.jsonl", [line])})
    first = stored_digests(settings)
    write_rows(tmp_path / "R.jsonl", [inline_row(0, 0, reward=0.25)])
    assert stored_digests(settings) != first


class Begun:
    """A run that has begun, as far as a replay looks at it."""

    def __init__(self, path, settings, model):
        self.run = RunDirectory(path)
        self.run.begin(settings, digests={"model": model, "data": "d"})


def test_a_replay_is_of_the_same_model_under_the_same_settings(tmp_path):
    Begun(tmp_path / "first", chosen({"train": "tasks.jsonl"}, env={"server": "arithmetic"}), "aa")
    write_step(tmp_path / "first" / "steps", 1, TrainStep(microbatches=[], metrics={"reward": 0.5}))
    settings = chosen({"replay": tmp_path / "first"})
    steps = replayed_steps(settings, Begun(tmp_path / "again", settings, "aa"))
    assert (steps.total_steps, steps.next().metrics) == (1, {"reward": 0.5})
    with pytest.raises(ConfigError, match=r"first was trained otherwise \(digests\.model: 'aa' then, 'bb' now\)"):
        replayed_steps(settings, Begun(tmp_path / "other", settings, "bb"))


def test_the_digest_of_a_replay_is_that_of_the_run_whatever_it_added_since(tmp_path):
    settings = chosen({"train": "tasks.jsonl"}, env={"server": "arithmetic"})
    Begun(tmp_path / "first", settings, "aa")
    replay = chosen({"replay": tmp_path / "first"})
    before = stored_digests(replay)
    write_step(tmp_path / "first" / "steps", 1, TrainStep(microbatches=[]))
    assert stored_digests(replay) == before
    manifest = tmp_path / "first" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"digests": {"model": "cc"}}))
    assert stored_digests(replay) != before


def played_by(policy, path, *, num_tasks, group_size):
    """A rollouts file whose log-probs are what the policy gives these tokens."""
    with RolloutLog(path, identity={}) as log:
        for key in (RolloutKey(task, index) for task in range(num_tasks) for index in range(group_size)):
            first, second = turns_of(*key)
            (sequence,) = training_sequences(build_trajectory(key, (first, second)), advantage=1.0)
            a, b, c, d = policy.logprobs([sequence])[0].tolist()
            turns = (replace(first, logprobs=(a, b)), replace(second, logprobs=(c, d)))
            row = row_of(*key, reward=float(key.rollout_index == 0))
            log.append(Rollout(key=key, attempt=0, row=row, turns=turns))
    return path


def weights(run):
    """Bytes of the model and the optimizer of every checkpoint."""
    files = ("model/model.safetensors", "trainer/optimizer.safetensors")
    return {one.name: [(one / file).read_bytes() for file in files] for one in sorted((run / "checkpoints").glob("step_*"))}


def test_stored_rollouts_train_and_their_recorded_steps_give_the_same_weights_again(tiny_llama, tmp_path):
    def run(name, data, **trainer):
        settings = chosen(
            data,
            policy={"model": str(tiny_llama), "compute_dtype": "float32", "lr": 1e-3},
            algorithm={"tasks_per_step": 2, "group_size": 3, "epochs_per_batch": 2, "clip_high": 0.3},
            trainer={"output": tmp_path / name, "max_steps": 50, "save_every": 1, "keep_last": 50, **trainer},
        )
        return train(settings)

    policy = TorchPolicy(tiny_llama, chosen({"replay": "none"}, policy={"compute_dtype": "float32"}).policy)
    path = played_by(policy, tmp_path / "R.jsonl", num_tasks=4, group_size=3)
    assert (result := run("first", {"rollouts": path}, record=True)).stopped == "data"
    assert result.steps == 4  # two batches, each trained on twice
    first, second, *_ = metrics(tmp_path / "first")
    assert (first["ratio"], first["gap"]) == (pytest.approx(1.0, abs=1e-5), pytest.approx(1.0, abs=1e-5))
    assert second["ratio_max"] != pytest.approx(1.0, abs=1e-4)  # the policy has moved away from what was stored
    assert first["reward"] == pytest.approx(1 / 3)

    assert run("again", {"replay": tmp_path / "first"}).steps == 4
    assert len(weights(tmp_path / "first")) == 4
    assert weights(tmp_path / "again") == weights(tmp_path / "first")
