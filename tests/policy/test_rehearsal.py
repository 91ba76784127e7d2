"""What a rehearsed step is said to hold, beside real ones; the layouts of several processes are in test_parallel.py."""

import json

import numpy as np
import pytest
import torch
from torch import distributed

from gym_bridge.errors import ConfigError
from gym_bridge.policy.live_bytes import LiveBytes
from gym_bridge.policy.rehearsal import rehearse
from gym_bridge.schemas.settings import PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence
from tests.policy.stage import bytes_of_a_step, mean_nll, open_policy

NUM_TOKENS = 200
DENSE_70B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
SPARSE_30B = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}


def rehearsed(directory, *, head="lm", num_processes=1, **settings):
    chosen = PolicySettings(**{"compute_dtype": "float32", "microbatch_tokens": NUM_TOKENS, **settings})
    return rehearse(directory, chosen, num_processes=num_processes, head=head)


def full_batch():
    ids = (np.arange(NUM_TOKENS) % 300 + 5).astype(np.int32)
    return [TrainingSequence(token_ids=ids, train_mask=np.arange(NUM_TOKENS) > 0)]


def test_bytes_are_counted_from_a_tensors_birth_to_its_end():
    first = torch.zeros(10)  # 40 bytes
    with LiveBytes([first]) as live:
        second = torch.zeros(100, dtype=torch.float64)
        assert (live.now, live.most) == (840, 840)
        view = second.view(10, 10)[2:]
        assert live.now == 840
        del second
        assert live.now == 840
        del view
        assert (live.now, live.most) == (40, 840)
        first += 1
        assert live.now == 40


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation_checkpointing": True},
        {"activation_checkpointing": "selective"},
        {"compute_dtype": "bfloat16"},
        {"lora": {"rank": 4}},
        {"optimizer": "adamw"},
    ],
    ids=str,
)
def test_a_rehearsed_step_holds_what_a_real_one_does(tiny_llama, settings):
    policy = open_policy(tiny_llama, microbatch_tokens=NUM_TOKENS, **settings)
    counted = bytes_of_a_step(policy, [full_batch()])
    assert rehearsed(tiny_llama, **settings).peak == pytest.approx(counted, rel=0.02)


def test_its_parts_are_those_of_the_policy(tiny_llama):
    found, policy = rehearsed(tiny_llama, compute_dtype="bfloat16"), open_policy(tiny_llama, compute_dtype="bfloat16")
    numel = sum(one.numel() for one in policy.module.parameters())
    assert found.parameters == found.parameters_here == numel
    assert found.weights >= 6 * numel  # masters of 4 bytes, copies of 2, and buffers
    assert found.weights <= 6 * numel + 1000
    assert (found.gradients, found.frozen - 2 * numel < 1000, found.whole) == (4 * numel, True, 2 * numel)
    assert 8 * numel <= found.moments <= 8 * numel + 4 * len(policy.masters.masters)  # and a counter of steps for each
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2  # keys and values of 2 layers, 2 heads of 8 numbers, 2 bytes


def test_moments_of_8_bits_are_counted_without_bitsandbytes(tiny_llama):
    pytest.importorskip("bitsandbytes")
    policy = open_policy(tiny_llama, optimizer="adamw_8bit", microbatch_tokens=NUM_TOKENS)
    policy.step([full_batch()], mean_nll)
    tables = ("qmap1", "qmap2")
    real = sum(
        value.untyped_storage().nbytes()
        for state in policy.masters.optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in tables
    )
    assert rehearsed(tiny_llama, optimizer="adamw_8bit").moments == pytest.approx(real, rel=0.02)


def test_a_scalar_head_and_a_directory_of_a_config_alone_will_do(tiny_llama, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    assert rehearsed(tmp_path, head="scalar").peak < rehearsed(tmp_path).peak


def test_what_it_does_not_know_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match=r"leave out policy\.family"):
        rehearsed(tiny_llama, family="my:Family")
    with pytest.raises(ConfigError, match=r"policy\.lora: adapters of layers that are cut are not built"):
        rehearsed(tiny_llama, num_processes=2, lora={"rank": 4}, tensor_parallel_size=2)
    assert not distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "cut", "num_parameters"),
    [
        (DENSE_70B, {}, 70.6e9),
        (DENSE_70B, {"tensor_parallel_size": 8, "sequence_parallel": True}, 70.6e9),
        (SPARSE_30B, {}, 30.5e9),
    ],
    ids=["70B", "70B in eight parts", "30B-A3B"],
)
def test_no_rank_of_64_holds_a_copy_of_a_large_model(config, cut, num_parameters, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    settings = PolicySettings(device="cuda", microbatch_tokens=4096, activation_checkpointing=True, **cut)
    for index in (0, 63):
        found = rehearse(tmp_path, settings, num_processes=64, head="lm", index=index)
        assert found.parameters == pytest.approx(num_parameters, rel=0.01)
        assert found.parameters_here <= 1.01 * found.parameters / 64
        state = 16 * found.parameters / 64
        assert found.weights + found.gradients + found.moments == pytest.approx(state, rel=0.01)
        assert found.peak < 0.3 * found.whole  # in bfloat16: what passes is a layer or two, and the vocabulary's
        assert found.whole > 60e9
