import sys

import pytest
import torch
from safetensors.torch import load_file

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy.optimizers import build_optimizer
from gym_bridge.schemas.settings import PolicySettings
from tests.policy.stage import mean_nll, open_policy, same, weights_of

OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit")
LARGE = 4096  # numbers of a weight whose moments have 8 bits


def moved_after(steps, optimizer, *, weight_decay=0.0, betas=(0.9, 0.95)):
    """By how much a weight of ones has moved by the same random gradients."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.ones(LARGE)
    built = build_optimizer([weight], PolicySettings(lr=0.01, optimizer=optimizer, weight_decay=weight_decay, betas=betas))
    gradients = []
    for _ in range(steps):
        weight.grad = torch.randn(LARGE, generator=generator)
        gradients.append(weight.grad.clone())
        built.step()
    return weight - 1, gradients


def adamw_by_hand(gradients, *, lr=0.01, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8):
    """Algorithm 2 of the paper, in float64."""
    weight, first, second = (torch.full((LARGE,), value, dtype=torch.float64) for value in (1.0, 0.0, 0.0))
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient.double()
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        scaled = first / (1 - betas[0] ** step) / ((second / (1 - betas[1] ** step)).sqrt() + eps)
        weight = weight - lr * (scaled + weight_decay * weight)
    return weight - 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_first_update_is_the_learning_rate_against_the_gradients_sign(optimizer):
    moved, gradients = moved_after(1, optimizer)
    torch.testing.assert_close(moved, -0.01 * gradients[0].sign(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("optimizer", "tolerance"), [("adamw", 1e-5), ("adamw_fused", 1e-5), ("adamw_8bit", 0.05)])
def test_ten_updates_are_those_of_the_paper(optimizer, tolerance):
    moved, gradients = moved_after(10, optimizer, weight_decay=0.1)
    expected = adamw_by_hand(gradients, weight_decay=0.1)
    assert float((moved - expected).norm()) < tolerance * float(expected.norm())


def test_moments_of_8_bits_take_a_quarter_of_the_memory(tiny_llama, group):
    sizes = {}
    for optimizer in ("adamw", "adamw_8bit"):
        policy = open_policy(tiny_llama, optimizer=optimizer)
        policy.step([group], mean_nll)
        name = "model.embed_tokens.weight"  # 400 x 32 numbers
        tensors = [one for key, one in policy.masters.state_tensors().items() if key.endswith(name)]
        sizes[optimizer] = sum(one.numel() * one.element_size() for one in tensors)
    assert sizes["adamw"] == 2 * 4 * 400 * 32 + 4
    assert sizes["adamw_8bit"] == 2 * (400 * 32 + 4 * 400 * 32 // 256) + 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_saved_and_loaded_moments_go_on_bit_for_bit(tiny_llama, group, tmp_path, optimizer, dtype):
    whole, resumed = (open_policy(tiny_llama, optimizer=optimizer, compute_dtype=dtype) for _ in range(2))
    for _ in range(2):
        whole.step([group], mean_nll)
    whole.save(tmp_path / "step", source_state={})
    resumed.load(tmp_path / "step")
    moments = whole.masters.state_tensors()
    assert same(resumed.masters.state_tensors(), moments)
    saved = load_file(tmp_path / "step" / "trainer" / "optimizer.safetensors")
    assert {key: one.dtype for key, one in saved.items()} == {key: one.dtype for key, one in moments.items()}
    assert (torch.uint8 in {one.dtype for one in saved.values()}) == (optimizer == "adamw_8bit")
    for policy in (whole, resumed):
        policy.step([group], mean_nll)
    assert same(weights_of(resumed), weights_of(whole))
    assert same(resumed.masters.state_tensors(), whole.masters.state_tensors())


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moments_on_a_gpu_come_back_bit_for_bit(tiny_llama, group, tmp_path, optimizer):
    whole, resumed = (open_policy(tiny_llama, optimizer=optimizer, device="cuda") for _ in range(2))
    whole.step([group], mean_nll)
    whole.save(tmp_path / "step", source_state={})
    resumed.load(tmp_path / "step")
    assert same(weights_of(resumed), weights_of(whole))
    assert same(resumed.masters.state_tensors(), whole.masters.state_tensors())
    resumed.step([group], mean_nll)


def test_a_weight_that_a_step_left_out_keeps_its_own_count_of_updates(tiny_llama, group):
    policy, resumed = open_policy(tiny_llama), open_policy(tiny_llama)
    policy.step([group], mean_nll)
    tensors = policy.masters.state_tensors() | {"step.model.norm.weight": torch.tensor([5.0])}
    resumed.masters.load_state_tensors(tensors)
    assert same(resumed.masters.state_tensors(), tensors)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adamw_8bit"}, "are another optimizer's; keep policy.optimizer as it was"),
        ({"lora": {"rank": 2}}, "are those of other weights, such as lm_head.weight; keep policy.lora as it was"),
    ],
)
def test_moments_that_do_not_fit_are_refused(tiny_llama, group, given, message):
    policy = open_policy(tiny_llama)
    policy.step([group], mean_nll)
    with pytest.raises(PolicyError, match=message):
        open_policy(tiny_llama, **given).masters.load_state_tensors(policy.masters.state_tensors())


def test_without_its_library_the_optimizer_of_8_bits_says_what_to_install(tiny_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(ConfigError, match=r"policy.optimizer=adamw_8bit needs .*: pip install 'gym-bridge\[train-8bit\]'"):
        open_policy(tiny_llama, optimizer="adamw_8bit")
