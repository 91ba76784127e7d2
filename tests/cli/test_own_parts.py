"""A backend, a model family, a loss and a sampler of a user's own package, named by dotted paths; no file of ours knows them."""

import sys
from pathlib import Path

import orjson
import pytest

from gym_bridge import make_tasks, train
from gym_bridge.config import load_config
from gym_bridge.schemas.settings import DPOSettings, GRPOSettings, RewardModelSettings, SFTSettings

PACKAGE = '''
"""Parts of somebody else's."""

import json
from pathlib import Path

import torch

from gym_bridge.policy.family import HFFamily
from gym_bridge.policy.samplers.local import LocalSampler
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.seams import Loss, StepResult

CALLED = Path(__file__).with_name("called.txt")


def note(what):
    with CALLED.open("a") as file:
        file.write(what + "\\n")


class Policy(TorchPolicy):
    def step(self, microbatches, loss_fn):
        note("backend")
        return super().step(microbatches, loss_fn)


class Alone:
    """A backend that shares no code with any of ours."""

    def __init__(self, directory, settings, *, head, total_steps):
        self.version = 0
        note(f"alone {head} {total_steps}")

    def logprobs(self, sequences):
        return [torch.full((one.num_trained,), -1.0) for one in sequences]

    reference_logprobs = logprobs

    def evaluate(self, microbatches, loss_fn):
        return {"loss": 1.0, "accuracy": 0.5}

    def step(self, microbatches, loss_fn):
        self.version += 1
        return StepResult(metrics={"loss": 1.0, "sequences": float(sum(map(len, microbatches)))})

    def save(self, directory, *, source_state):
        (directory / "model").mkdir(parents=True)
        (directory / "trainer").mkdir()
        (directory / "trainer" / "state.json").write_text(json.dumps({"version": self.version, "source": dict(source_state)}))

    def load(self, directory):
        self.version = json.loads((directory / "trainer" / "state.json").read_text())["version"]

    def weights(self):
        return ()


class Family(HFFamily):
    def hidden(self, module, packed):
        note("family")
        return super().hidden(module, packed)


class Sampler(LocalSampler):
    def __init__(self, policy, settings, *, overlaps, run):
        note(f"sampler {settings.max_tokens} {overlaps}")
        super().__init__(policy.module, max_batch=settings.max_batch)


def halved(algorithm):
    def loss(logprobs, columns):
        return Loss(-0.5 * logprobs.sum() / columns.num_tokens, {"mine": 1 / columns.num_tokens})

    return loss
'''


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the outside package was called for, so far."""
    (tmp_path / "outside_parts.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_parts", raising=False)  # of the test before
    return lambda: set((tmp_path / "called.txt").read_text().split("\n")) - {""}


def metrics(run: Path) -> dict:
    return orjson.loads((run / "metrics.jsonl").read_bytes().splitlines()[0])


def test_a_backend_a_family_and_a_loss_of_another_package_train(called, tiny_llama: Path, tmp_path: Path):
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    (tmp_path / "sft.jsonl").write_bytes(orjson.dumps({"messages": messages}) + b"\n")
    shared = [
        f"data.train={tmp_path / 'sft.jsonl'}",
        f"policy.model={tiny_llama}",
        "data.cache=false",
        "policy.compute_dtype=float32",
    ]
    own = ["policy.backend=outside_parts:Policy", "policy.family=outside_parts:Family", "algorithm.loss=outside_parts:halved"]
    for name, overrides in (("theirs", own), ("ours", [])):
        train(load_config(SFTSettings, overrides=[*shared, *overrides, f"trainer.output={tmp_path / name}"]))
    assert called() == {"backend", "family"}
    theirs, ours = metrics(tmp_path / "theirs"), metrics(tmp_path / "ours")
    assert theirs["loss"] == pytest.approx(ours["loss"] / 2, rel=1e-6)
    assert "mine" in theirs
    assert "mine" not in ours


@pytest.mark.parametrize(("settings", "head"), [(SFTSettings, "lm"), (DPOSettings, "lm"), (RewardModelSettings, "scalar")])
def test_a_backend_needs_nothing_but_the_methods_of_the_protocol(called, settings, head, tiny_llama: Path, tmp_path: Path):
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    chat, pair = {"messages": messages}, {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes((orjson.dumps(chat if settings is SFTSettings else pair) + b"\n") * 2)
    shared = [f"data.train={rows}", f"data.validation.held_out={rows}", "data.cache=false", f"policy.model={tiny_llama}"]
    own = ["policy.backend=outside_parts:Alone", "algorithm.batch_size=1", f"trainer.output={tmp_path / 'run'}"]
    for max_steps in (1, 2):  # the second goes on from the first's checkpoint
        result = train(load_config(settings, overrides=[*shared, *own, f"trainer.max_steps={max_steps}"]))
        assert (result.steps, result.metrics["validation/held_out/loss"]) == (max_steps, 1.0)
    assert called() == {f"alone {head} 1", f"alone {head} 2"}


def test_a_sampler_of_another_package_plays(called, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from gym_bridge.errors import PolicyError

    make_tasks("arithmetic", tmp_path / "tasks.jsonl", num_tasks=1, seed=0, split="train", knobs={})
    overrides = [
        f"data.train={tmp_path / 'tasks.jsonl'}",
        f"policy.model={tiny_llama}",
        "env.server=arithmetic",
        "sampler.kind=outside_parts:Sampler",
        "sampler.max_tokens=3",
        "algorithm.group_size=2",
        "algorithm.tasks_per_step=1",
        f"trainer.output={tmp_path / 'grpo'}",
    ]
    monkeypatch.setattr("gym_bridge.trainers.grpo.MAX_EMPTY_BATCHES", 1)
    with pytest.raises(PolicyError, match="no spread"):  # a model of random weights never answers right
        train(load_config(GRPOSettings, overrides=overrides))
    assert called() == {"sampler 3 False"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.backend=torhc", "unknown policy backend 'torhc'; did you mean 'torch'?"),
        ("policy.family=outside_parts:Famly", "cannot load 'outside_parts:Famly'"),
        ("algorithm.loss=outside_parts:PACKAGE", "cannot load 'outside_parts:PACKAGE'"),
    ],
)
def test_a_part_that_is_not_there_is_one_line(called, gym_bridge, override: str, message: str, tiny_llama: Path, tmp_path: Path):
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    (tmp_path / "sft.jsonl").write_bytes(orjson.dumps({"messages": messages}) + b"\n")
    given = [f"data.train={tmp_path / 'sft.jsonl'}", f"policy.model={tiny_llama}", f"trainer.output={tmp_path / 'run'}"]
    ended = gym_bridge("train", "sft", *given, override)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
