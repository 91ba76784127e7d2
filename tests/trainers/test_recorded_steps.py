"""Steps of a run taken again from their records, by a real tiny model in the real loop."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.io.step_records import write_step
from gym_bridge.schemas.seams import Loss, TrainStep
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.trainers.recorded_steps import RecordedSteps, check_same_training
from tests.trainers.loop_stage import metrics, play


def surrogate(logprobs, columns):
    """An importance-weighted loss that reads every column of a step."""
    ratio = (logprobs - columns.old_logprobs).exp()
    value = (-ratio * columns.advantages * columns.weights).sum() / columns.num_tokens
    pull = torch.nan_to_num(logprobs - columns.ref_logprobs).square().sum() / columns.num_sequences
    return Loss(value + 0.1 * pull, {"ratio": float(ratio.sum().detach() / columns.num_tokens)})


class Played:
    """A source of random off-policy steps of varied shapes, as reinforcement learning makes them; it records each."""

    def __init__(self, records, *, num_steps, seed=5):
        self.records, self.num_steps = records, num_steps
        self.random, self.number = np.random.default_rng(seed), 0

    def next(self):
        if self.number == self.num_steps:
            return None
        step = TrainStep(
            microbatches=[[self.sequence(), self.sequence()], [self.sequence()]],
            metrics={"reward": float(self.random.random()), "unknown": float("nan")},
        )
        write_step(self.records, self.number + 1, step)
        return step

    def sequence(self):
        length = int(self.random.integers(4, 9))
        mask = np.arange(length) >= 2
        column = np.where(mask, self.random.normal(-3, 1, length), np.nan).astype(np.float32)
        sequence = TrainingSequence(
            token_ids=self.random.integers(5, 300, length).astype(np.int32),
            train_mask=mask,
            rollout_logprobs=column,
            advantage=float(self.random.normal()),
            weight=float(self.random.random()),
            origin=f"rollout {self.number}",
        )
        if self.random.random() < 0.5:
            return replace(sequence, old_logprobs=column - np.float32(0.1), ref_logprobs=column, advantages=column)
        return sequence

    def stepped(self, version):
        self.number = version

    def state_dict(self):
        return {}

    def close(self):
        pass


def weights(run):
    """Bytes of the model and the optimizer of every checkpoint."""
    files = ("model/model.safetensors", "trainer/optimizer.safetensors")
    return {one.name: [(one / file).read_bytes() for file in files] for one in sorted((run / "checkpoints").glob("step_*"))}


@pytest.fixture(scope="module")
def recorded(tiny_llama, tmp_path_factory):
    """A run of four recorded steps, each with its checkpoint."""
    run = tmp_path_factory.mktemp("recorded")
    source = Played(run / "steps", num_steps=4)
    assert play(tiny_llama, run, source, loss_fn=surrogate, save_every=1, keep_last=9).steps == 4
    return run


def test_a_replay_gives_the_weights_of_the_run_after_each_step(recorded, tiny_llama, tmp_path):
    source = RecordedSteps(recorded)
    assert source.total_steps == 4
    assert play(tiny_llama, tmp_path, source, loss_fn=surrogate, save_every=1, keep_last=9).stopped == "data"
    before = weights(recorded)
    assert list(before) == [f"step_{number:08d}" for number in range(1, 5)]
    assert len({one for one, _ in before.values()}) == 4  # every step changed them
    assert weights(tmp_path) == before
    told = [
        [(line["step"], line["reward"], line["loss"], line["grad_norm"]) for line in metrics(run)] for run in (recorded, tmp_path)
    ]
    assert told[0] == told[1]


def test_a_replay_that_stopped_goes_on(recorded, tiny_llama, tmp_path):
    play(tiny_llama, tmp_path, RecordedSteps(recorded), loss_fn=surrogate, save_every=1, keep_last=9, max_steps=2)
    assert list(weights(tmp_path)) == ["step_00000001", "step_00000002"]
    play(tiny_llama, tmp_path, RecordedSteps(recorded), loss_fn=surrogate, save_every=1, keep_last=9)
    assert weights(tmp_path) == weights(recorded)


def empty(metrics=None):
    return TrainStep(microbatches=[], metrics=metrics or {})


def record(run, numbers, *, taken=None):
    """A run that recorded `numbers`, whose metrics tell of `taken` steps."""
    for number in numbers:
        write_step(run / "steps", number, empty({"number": number}))
    if taken is not None:
        lines = [{"step": step, "loss": 1.0} for step in range(taken + 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"step": 9')  # torn
    return run


def numbers(source):
    found = []
    while (step := source.next()) is not None:
        found.append(step.metrics["number"])
        source.stepped(len(found))
    return found


def test_steps_that_were_recorded_and_not_taken_are_not_replayed(tmp_path):
    assert numbers(RecordedSteps(record(tmp_path, [1, 2, 3, 4], taken=3))) == [1, 2, 3]


def test_without_metrics_every_record_is_replayed(tmp_path):
    assert numbers(RecordedSteps(record(tmp_path, [1, 2, 3]))) == [1, 2, 3]


def test_a_step_is_given_again_until_it_was_taken(tmp_path):
    source = RecordedSteps(record(tmp_path, [1, 2]))
    assert [source.next().metrics["number"] for _ in range(2)] == [1, 1]
    again = RecordedSteps(tmp_path)
    again.load_state_dict(json.loads(json.dumps({"step": 1})))
    assert again.next().metrics["number"] == 2
    assert source.state_dict() == {"step": 0}


@pytest.mark.parametrize(
    ("recorded", "taken", "gap"), [([1, 2, 4], 4, 3), ([2, 3], 3, 1), ([1, 2], 3, 3), ([1, 3], None, 2), ([5], None, 1)]
)
def test_a_gap_in_the_steps_is_told(tmp_path, recorded, taken, gap):
    with pytest.raises(ConfigError, match=rf"step {gap} is not recorded"):
        RecordedSteps(record(tmp_path, recorded, taken=taken))


@pytest.mark.parametrize(("recorded", "taken"), [([], None), ([], 3), ([1, 2], 0)])
def test_a_run_without_recorded_steps_says_how_to_get_some(tmp_path, recorded, taken):
    with pytest.raises(ConfigError, match=r"has no recorded steps; train it with trainer\.record=true"):
        RecordedSteps(record(tmp_path, recorded, taken=taken))


def test_a_damaged_record_is_told_when_it_is_its_turn(tmp_path):
    source = RecordedSteps(record(tmp_path, [1]))
    (tmp_path / "steps" / "step_00000001.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"step_00000001\.npz: no record of a step"):
        source.next()


def chosen(**sections):
    """Settings of a replay, or of the run that it replays."""
    base = {"data": {"replay": "run"}, "policy": {"lr": 1e-4}, "algorithm": {"preset": "dapo"}, "trainer": {"max_steps": 10}}
    return GRPOSettings.model_validate({name: {**base.get(name, {}), **sections.get(name, {})} for name in {**base, **sections}})


def begun(path, *, model="aa", **sections):
    RunDirectory(path).begin(chosen(**sections), digests={"model": model, "tokenizer": "t", "data": "d"})
    return path


def test_the_same_settings_and_model_may_replay_wherever_the_data_and_the_model_lie(tmp_path):
    run = begun(tmp_path / "run", policy={"model": "smollm2-135m"}, trainer={"seed": 3, "max_steps": 40})
    check_same_training(run, chosen(policy={"model": "elsewhere"}), digests={"model": "aa"})


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({}, {"policy": {"lr": 2e-4}}, r"policy\.lr: 0\.0001 then, 0\.0002 now"),
        ({}, {"policy": {"compute_dtype": "float32"}}, r"policy\.compute_dtype: 'auto' then, 'float32' now"),
        ({}, {"algorithm": {"clip_high": 0.5}}, r"algorithm\.clip_high: 0\.28 then, 0\.5 now"),
        ({"model": "bb"}, {}, r"digests\.model: 'bb' then, 'aa' now"),
        (
            {"policy": {"schedule": "linear"}, "trainer": {"max_steps": 20}},
            {"policy": {"schedule": "linear"}},
            r"trainer\.max_steps: 20 then, 10 now",
        ),
        (
            {"algorithm": {"preset": "dr_grpo"}, "sampler": {"max_tokens": 32}},
            {"algorithm": {"preset": "dr_grpo"}},
            r"sampler\.max_tokens: 32 then, 64 now",
        ),
    ],
)
def test_what_would_give_other_weights_is_named_and_refused(tmp_path, then, now, told):
    run = begun(tmp_path / "run", **then)
    with pytest.raises(ConfigError, match=rf"run was trained otherwise \({told}\)"):
        check_same_training(run, chosen(**now), digests={"model": "aa"})


def test_the_samplers_limit_counts_only_where_the_loss_divides_by_it(tmp_path):
    run = begun(tmp_path / "run", sampler={"max_tokens": 32})
    check_same_training(run, chosen(sampler={"max_tokens": 64}), digests={"model": "aa"})


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, r"it has no manifest\.json; set data\.replay"), (b"{}", "is no manifest"), (b"to", "is no manifest")],
)
def test_what_is_no_run_is_told(tmp_path, content, told):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        check_same_training(tmp_path, chosen(), digests={"model": "aa"})
