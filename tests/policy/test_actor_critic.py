import math
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from gym_bridge.errors import ConfigError, NonFiniteLossError, PolicyError
from gym_bridge.policy.actor_critic import ActorCritic, open_actor_critic
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import CriticSettings, PolicySettings
from tests.policy.stage import gradients_of_step, open_policy, same, weighted, weights_of

TIMED = ("train_s", "tokens_per_s", "trained_tokens_per_s", "peak_memory_gib")
LORA = {"rank": 4, "alpha": 8.0}


def squared_error(values, columns):
    """The mean over trained tokens of (value - return) squared, and the mean value."""
    metrics = {"mean": float(values.detach().sum() / columns.num_tokens)}
    return Loss((values - columns.returns).square().sum() / columns.num_tokens, metrics)


def no_number(values, columns):
    return Loss(values.sum() * math.nan)


def endless_slope(values, columns):
    """0 with a slope of infinity."""
    return Loss(torch.sqrt(values - values.detach()).sum())


def opened(directory, *, warmup_steps=0, value_loss=squared_error, backend=TorchPolicy, total_steps=None, **settings):
    chosen = PolicySettings(**{"compute_dtype": "float32", "lr": 1e-3, **settings})
    critic = CriticSettings(lr=1e-2, warmup_steps=warmup_steps)
    return open_actor_critic(backend, directory, chosen, critic, value_loss=value_loss, total_steps=total_steps)


def after(steps, both, batch):
    for _ in range(steps):
        both.step([batch], weighted)
    return both


def state_of(both):
    """Weights and moments of both models."""
    models = {"policy": both.policy, "value": both.value_model}
    return {
        f"{model}.{name}": tensor.detach().clone()
        for model, one in models.items()
        for name, tensor in {**one.masters.masters, **one.masters.state_tensors()}.items()
    }


def files_of(directory):
    return {one.relative_to(directory).as_posix(): one.read_bytes() for one in directory.rglob("*") if one.is_file()}


@pytest.fixture
def batch(group, training_sequence):
    """The group and a prompt of a single token, with returns that differ by token."""
    sequences = [*group, training_sequence("pTT", [3, 9, 2])]
    return [replace(one, returns=np.linspace(0, 1, len(one.token_ids), dtype=np.float32)) for one in sequences]


def alone(directory, sequences):
    """Values, loss and gradients of the sequences one by one, from transformers' own hidden states."""
    module = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    found, total = [], torch.tensor(0.0)
    for one in sequences:
        states = module.model(torch.from_numpy(one.token_ids).long()[None]).last_hidden_state[0]
        before = states[:-1] @ module.score.weight[0]  # of state t, in which token t + 1 is chosen
        values = before[torch.from_numpy(one.train_mask[1:])]
        found.append(values.detach())
        total = total + (values - torch.from_numpy(one.returns[one.train_mask])).square().sum()
    loss = total / sum(one.num_trained for one in sequences)
    loss.backward()
    return found, loss.item(), {name: param.grad for name, param in module.named_parameters()}


@pytest.mark.parametrize("cut", [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_values_and_their_gradients_are_those_of_the_state_before_each_token(tiny_model, batch, tmp_path, cut):
    both = after(3, opened(tiny_model, microbatch_tokens=10), batch)
    both.save(tmp_path / "step", source_state={})
    expected, loss, slopes = alone(tmp_path / "step" / "critic" / "model", batch)
    assert max(float(one.abs().max()) for one in expected) > 1e-2
    for one, other in zip(both.values(batch), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    rest = list(batch)
    found, result = gradients_of_step(both.value_model, [[rest.pop(0) for _ in range(size)] for size in cut], squared_error)
    assert result.metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert found.keys() == slopes.keys()
    for name, gradient in slopes.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_values_begin_at_zero_and_move(tiny_llama, batch, lora):
    both = opened(tiny_llama, lora=lora)
    assert not torch.cat(both.values(batch)).any()
    after(1, both, batch)
    assert torch.cat(both.values(batch)).all()


@pytest.mark.parametrize("settings", [{}, {"compute_dtype": "bfloat16", "lora": LORA}])
def test_a_step_is_a_step_of_each(tiny_llama, batch, settings):
    both, policy = opened(tiny_llama, warmup_steps=0, **settings), open_policy(tiny_llama, **settings)
    value_model = open_policy(tiny_llama, **{**settings, "lr": 1e-2}, head="value")
    for _ in range(2):
        found = both.step([batch[:2], batch[2:]], weighted).metrics
        expected = policy.step([batch[:2], batch[2:]], weighted).metrics
        of_values = value_model.step([batch[:2], batch[2:]], squared_error).metrics
    assert both.version == policy.version == 2
    assert same(weights_of(both.policy), weights_of(policy))
    assert same(weights_of(both.value_model), weights_of(value_model))
    names = {"loss", "entropy", "grad_norm", "lr", "num_trained_tokens", "num_packed_tokens", *TIMED}
    assert found.keys() == names | {f"critic/{name}" for name in names - {"entropy"} | {"mean"}}
    for name in names - {*TIMED}:
        assert found[name] == expected[name]
    for name in names - {"entropy", *TIMED} | {"mean"}:
        assert found[f"critic/{name}"] == of_values[name]
    assert (found["lr"], found["critic/lr"]) == (1e-3, 1e-2)
    assert found["train_s"] > found["critic/train_s"]
    assert found["trained_tokens_per_s"] == pytest.approx(13 / found["train_s"])


def test_all_but_the_value_model_is_the_policys_own(tiny_llama, batch):
    both, policy = after(1, opened(tiny_llama), batch), open_policy(tiny_llama)
    policy.step([batch], weighted)
    assert same(dict(both.weights()), dict(policy.weights()))
    assert both.evaluate([batch], weighted) == policy.evaluate([batch], weighted)
    for name in ("logprobs", "reference_logprobs"):
        for one, other in zip(getattr(both, name)(batch), getattr(policy, name)(batch), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("dtype", "lora"), [("float32", None), ("bfloat16", None), ("float32", LORA)])
def test_saved_and_loaded_both_go_on_bit_for_bit(tiny_model, batch, tmp_path, dtype, lora):
    settings = {"compute_dtype": dtype, "lora": lora, "schedule": "linear", "total_steps": 9, "warmup_steps": 1}
    whole = after(3, opened(tiny_model, **settings), batch)
    whole.save(tmp_path / "step", source_state={"position": 7})
    assert sorted(one.name for one in (tmp_path / "step").iterdir()) == ["critic", "model", "trainer"]
    resumed = opened(tiny_model, **settings)
    resumed.load(tmp_path / "step")
    assert resumed.version == 3
    assert same(state_of(resumed), state_of(whole))
    first, second = (one.step([batch], weighted).metrics for one in (whole, resumed))
    assert {name: value for name, value in first.items() if not name.endswith(TIMED)} == {
        name: value for name, value in second.items() if not name.endswith(TIMED)
    }
    assert same(state_of(resumed), state_of(whole))
    for one, other in zip(resumed.values(batch), whole.values(batch), strict=True):
        assert torch.equal(one, other)


def test_in_the_warm_up_the_value_model_alone_learns(tiny_llama, batch, tmp_path):
    settings = {"schedule": "linear", "total_steps": 10, "warmup_steps": 2}
    both, before = opened(tiny_llama, **settings), state_of(opened(tiny_llama, **settings))
    told = [both.step([batch], weighted).metrics for _ in range(2)]
    now = state_of(both)
    assert both.version == both.policy.version == 2
    assert all(torch.equal(now[name], one) == name.startswith("policy.") for name, one in before.items())
    assert [one["lr"] for one in told] == [0.0, 0.0]
    assert told[0]["loss"] == told[1]["loss"] != 0
    assert all(one["entropy"] > 0 and one["trained_tokens_per_s"] == pytest.approx(13 / one["train_s"]) for one in told)
    both.save(tmp_path / "step", source_state={})
    resumed = opened(tiny_llama, **settings)
    resumed.load(tmp_path / "step")
    metrics = [one.step([batch], weighted).metrics for one in (both, resumed)]
    assert same(state_of(both), state_of(resumed))
    policy = open_policy(tiny_llama, schedule="linear", total_steps=10)
    policy.version = 2
    assert [one["lr"] for one in metrics] == [policy.step([batch], weighted).metrics["lr"]] * 2 == [1e-3 * 8 / 10] * 2
    assert same(weights_of(both.policy), weights_of(policy))


@pytest.mark.parametrize("warmup_steps", [0, 9])
@pytest.mark.parametrize(
    ("of_policy", "of_values", "message"),
    [
        (weighted, no_number, r"the value model's loss is nan at step 2, from 5 sequences; lower algorithm.critic.lr or look"),
        (weighted, endless_slope, r"the value model's gradient's norm is (nan|inf) at step 2, .*; lower algorithm.critic.lr"),
        (no_number, squared_error, r"the loss is nan (at|in the evaluation after) step \d, from 5 sequences; lower policy.lr"),
    ],
)
def test_where_one_update_fails_neither_is_made(tiny_llama, batch, warmup_steps, of_policy, of_values, message):
    both, untouched = (after(1, opened(tiny_llama, warmup_steps=warmup_steps), batch) for _ in range(2))
    both.value_loss = of_values
    with pytest.raises(NonFiniteLossError, match=message) as told:
        both.step([batch], of_policy)
    assert list(told.value.sequences) == batch
    assert (both.version, both.policy.version, both.value_model.version) == (1, 1, 1)
    assert same(state_of(both), state_of(untouched))
    both.value_loss = squared_error
    for one in (both, untouched):
        after(1, one, batch)
    assert same(state_of(both), state_of(untouched))


class Torn(TorchPolicy):
    """Its value model's files are half written when `happens`."""

    happens = None

    def write(self, directory, *, source_state):
        super().write(directory, source_state=source_state)
        if self.head == "value" and self.happens:
            (directory / "trainer" / "state.json").unlink()
            self.happens()


def full():
    raise OSError(28, "No space left on device")


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("happens", "error"), [(full, "cannot save .*step: No space left on device"), (interrupted, None)])
def test_a_save_that_fails_halfway_leaves_the_checkpoint_before_it(tiny_llama, batch, tmp_path, happens, error):
    both = opened(tiny_llama, backend=Torn)
    both.save(tmp_path / "step", source_state={"position": 0})
    before = files_of(tmp_path)
    after(1, both, batch)
    both.value_model.happens = happens
    with pytest.raises((PolicyError, KeyboardInterrupt), match=error):
        both.save(tmp_path / "step", source_state={"position": 1})
    assert files_of(tmp_path) == before
    both.value_model.happens = None
    both.save(tmp_path / "step", source_state={"position": 1})
    assert [one.name for one in tmp_path.iterdir()] == ["step"]
    resumed = opened(tiny_llama)
    resumed.load(tmp_path / "step")
    assert same(state_of(resumed), state_of(both))


def test_a_kill_in_the_midst_of_a_save_leaves_nothing_that_looks_whole(tiny_llama, batch, tmp_path):
    both = opened(tiny_llama, backend=Torn)
    both.save(tmp_path / "step_1", source_state={})
    before = files_of(tmp_path / "step_1")
    both.value_model.happens = lambda: os.kill(os.getpid(), signal.SIGKILL)
    for name in ("step_1", "step_2"):
        child = os.fork()
        if child == 0:
            try:
                both.save(tmp_path / name, source_state={})
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert files_of(tmp_path / "step_1") == before
    assert sorted(one.name for one in tmp_path.glob("[!.]*")) == ["step_1"]
    both.value_model.happens = None
    both.save(tmp_path / "step_2", source_state={})
    opened(tiny_llama).load(tmp_path / "step_2")


def test_half_of_a_checkpoint_is_refused(tiny_llama, batch, tmp_path):
    both = after(1, opened(tiny_llama), batch)
    both.save(tmp_path / "one", source_state={})
    after(1, both, batch).save(tmp_path / "two", source_state={})
    shutil.rmtree(tmp_path / "one" / "critic")
    with pytest.raises(PolicyError, match=r"one/critic: no whole checkpoint"):
        opened(tiny_llama).load(tmp_path / "one")
    shutil.copytree(tmp_path / "two" / "critic", tmp_path / "one" / "critic")
    with pytest.raises(PolicyError, match="its policy is of version 1, its value model of version 2"):
        opened(tiny_llama).load(tmp_path / "one")


class Plain:
    """A backend that only steps."""

    version = 0

    def __init__(self, directory, settings, *, head, total_steps):
        pass


def test_a_backend_whose_models_cannot_step_together_is_refused(tiny_llama):
    settings = PolicySettings(backend="mine:Plain")
    with pytest.raises(ConfigError, match=r"policy.backend=mine:Plain has no prepare and no write, .*; see TorchPolicy"):
        open_actor_critic(Plain, tiny_llama, settings, CriticSettings(), value_loss=squared_error)


@pytest.mark.parametrize("head", ["scalar", "lm"])
def test_a_model_that_knows_the_token_is_no_value_model(tiny_llama, head):
    with pytest.raises(PolicyError, match=f"a model opened with head='{head}' gives no values of states"):
        ActorCritic(open_policy(tiny_llama), open_policy(tiny_llama, head=head), squared_error)


def test_it_is_a_policy_of_any_two_models(tiny_llama, tiny_qwen3, batch):
    both = ActorCritic(open_policy(tiny_llama), open_policy(tiny_qwen3, head="value"), squared_error)
    losses = [both.step([batch], weighted).metrics["critic/loss"] for _ in range(6)]
    assert losses[-1] < losses[0]
