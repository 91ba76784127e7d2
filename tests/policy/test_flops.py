"""FLOPs counted by hand. Tiny models: hidden 32, 4 heads of 8 (Llama) or 16 (Qwen3), 2 of keys, feed-forward 64, 400 tokens."""

from pathlib import Path

import pytest
import torch

from gym_bridge.policy.flops import Utilisation, model_flops, peak_flops
from gym_bridge.policy.loading import load_module
from gym_bridge.policy.memory import peak_memory_gib

CPU = torch.device("cpu")
LLAMA_LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32  # queries, keys and values, output, feed-forward, norms
LLAMA = 2 * LLAMA_LAYER + 32
QWEN3_LAYER = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 16
QWEN3 = 2 * QWEN3_LAYER + 32
HEAD = 400 * 32


@pytest.mark.parametrize(("name", "params", "head_dim"), [("tiny_llama", LLAMA, 8), ("tiny_qwen3", QWEN3, 16)])
def test_a_step_costs_6_a_parameter_and_12_a_layer_head_and_pair(request, name, params, head_dim):
    """The input embedding is looked up, not multiplied; tied or not, the output embedding is, where a token trains."""
    flops = model_flops(load_module(request.getfixturevalue(name), device=CPU))
    positions = torch.tensor([0, 1, 2, 3, 0, 1])  # sequences of 4 and 2 tokens
    attention = 12 * 2 * 4 * head_dim * (4**2 + 2**2)
    assert flops.of_microbatch(positions, num_trained=3) == 6 * params * 6 + 6 * HEAD * 3 + attention


def test_a_shared_prefix_counts_once(tiny_llama):
    """Two sequences of 3 tokens with the first two in common: 3^2 and, for the other one's last token, 2 * 2 + 1."""
    flops = model_flops(load_module(tiny_llama, device=CPU))
    attention = 12 * 2 * 4 * 8 * (9 + 5)
    assert flops.of_microbatch(torch.tensor([0, 1, 2, 2]), num_trained=2) == 6 * LLAMA * 4 + 6 * HEAD * 2 + attention


def test_frozen_parameters_get_no_gradient_of_their_own(tiny_llama):
    module = load_module(tiny_llama, device=CPU)
    for param in module.parameters():
        param.requires_grad_(False)
    module.get_submodule("model.norm").weight.requires_grad_(True)
    flops = model_flops(module)
    assert (flops.per_token, flops.per_trained_token) == (4 * (LLAMA - 32) + 6 * 32, 4 * HEAD)


def test_a_window_reaches_no_further_than_it_does_and_layers_without_attention_have_none():
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "linear_attention"]
    config = Gemma3TextConfig(**sizes, num_hidden_layers=3, head_dim=8, sliding_window=2, layer_types=kinds[:3])
    module = AutoModelForCausalLM.from_config(config)
    module.config.layer_types = kinds
    flops = model_flops(module)
    attention = 12 * 4 * 8 * (2 * (1 + 3 + 3 + 3) + 4**2)
    assert flops.of_microbatch(torch.arange(4), num_trained=0) == flops.per_token * 4 + attention


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA L40", None),
        ("NVIDIA A10", None),
        ("device 'cpu'", None),
    ],
)
def test_a_peak_is_known_by_the_whole_name_of_the_device_or_not_at_all(name, peak):
    assert peak_flops(name) == peak


def test_utilisation_is_flops_a_second_over_the_peak_and_left_out_where_that_is_unknown(tiny_llama, caplog):
    with caplog.at_level("INFO", logger="gym_bridge.policy.flops"):
        meter = Utilisation(load_module(tiny_llama, device=CPU), device=CPU, compute_dtype=torch.bfloat16)
    meter.count(torch.arange(4), num_trained=2)
    assert meter.metrics(seconds=2.0) == {}
    assert caplog.messages == ["mfu is left out: no peak FLOP/s is known of device 'cpu' in torch.bfloat16"]
    meter.peak = 1e9
    for _ in range(2):
        meter.begin()
        meter.count(torch.arange(4), num_trained=2)
        meter.count(torch.arange(2), num_trained=1)
    flops = 6 * LLAMA * 6 + 6 * HEAD * 3 + 12 * 2 * 4 * 8 * (16 + 4)
    assert meter.metrics(seconds=2.0) == pytest.approx({"mfu": flops / 2e9})
    together = Utilisation(load_module(tiny_llama, device=CPU), device=CPU, compute_dtype=torch.bfloat16, num_devices=4)
    together.peak = 1e9
    together.count(torch.arange(4), num_trained=2)
    together.count(torch.arange(2), num_trained=1)
    assert together.metrics(seconds=2.0) == pytest.approx({"mfu": flops / 8e9})


def test_peak_memory_is_that_of_the_process_so_far():
    (resident,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    before = peak_memory_gib(CPU)
    more = before - int(resident.split()[1]) / 2**20 + 0.125  # GiB: beyond the peak
    held = torch.ones(int(more * 2**28))
    risen = peak_memory_gib(CPU)
    assert before + 0.1 < risen < before + 0.2
    del held
    assert risen - 0.01 < peak_memory_gib(CPU) < risen + 0.01  # a peak stays
