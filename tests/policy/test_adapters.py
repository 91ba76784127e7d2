import asyncio
from contextlib import closing

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy.samplers.local import LocalSampler
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.tokens import SampleKey, SamplingParams, TrainingSequence
from tests.policy.stage import assert_merged_takes_the_same_step, open_policy, same, weighted, weights_of

IDS = torch.tensor([[3, 9, 4, 8, 20, 31]])


def adapted(directory, *, rank=4, alpha=8.0, target_modules="all-linear", **settings):
    lora = {"rank": rank, "alpha": alpha, "target_modules": target_modules}
    return open_policy(directory, lora=lora, **{"lr": 1e-2, **settings})


def after(steps, policy, group, loss_fn=weighted):
    for _ in range(steps):
        policy.step([group], loss_fn)
    return policy


def summed(scores, columns):
    return Loss((scores * columns.advantages).sum())


def values(policy, group):
    return torch.cat(policy.logprobs(group))


def test_at_the_start_nothing_is_changed_and_the_adapters_alone_train(tiny_model, group):
    policy, plain = adapted(tiny_model), open_policy(tiny_model)
    assert torch.equal(values(policy, group), values(plain, group))
    frozen = {name: one.clone() for name, one in policy.module.named_parameters() if "lora_" not in name}
    after(2, policy, group)
    assert same({name: one for name, one in policy.module.named_parameters() if "lora_" not in name}, frozen)
    assert len(policy.masters.masters) == 2 * 7 * 2  # two matrices for each of seven layers, twice
    assert not torch.equal(values(policy, group), values(plain, group))


def test_merged_it_is_the_same_model_in_loss_and_gradients(tiny_model, group, tmp_path):
    assert_merged_takes_the_same_step(after(3, adapted(tiny_model), group), tmp_path / "step", [group[:2], group[2:]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_saved_and_loaded_it_goes_on_bit_for_bit(tiny_model, group, tmp_path, dtype, head):
    loss_fn = weighted if head == "lm" else summed
    whole = after(2, adapted(tiny_model, compute_dtype=dtype, head=head), group, loss_fn)
    whole.save(tmp_path / "step", source_state={})
    resumed = adapted(tiny_model, compute_dtype=dtype, head=head)
    resumed.load(tmp_path / "step")
    assert resumed.version == 2
    assert torch.equal(values(resumed, group), values(whole, group))
    for policy in (whole, resumed):
        after(1, policy, group, loss_fn)
    assert same(weights_of(resumed), weights_of(whole))
    assert same(resumed.masters.state_tensors(), whole.masters.state_tensors())
    assert {one.dtype for one in weights_of(whole).values()} == {torch.float32}


def test_in_bfloat16_the_frozen_weights_take_two_bytes(tiny_llama):
    policy = adapted(tiny_llama, compute_dtype="bfloat16")
    assert {one.dtype for one in policy.module.parameters()} == {torch.bfloat16}
    assert all("lora_" in name for name in policy.masters.masters)


def test_the_reference_is_the_base_whatever_was_learned(tiny_model, group):
    policy = after(2, adapted(tiny_model), group)
    learned = values(policy, group)
    assert torch.equal(torch.cat(policy.reference_logprobs(group)), values(open_policy(tiny_model), group))
    assert torch.equal(values(policy, group), learned)
    before = weights_of(policy)
    after(1, policy, group)
    assert not any(torch.equal(one, before[name]) for name, one in weights_of(policy).items())


def test_a_checkpoint_is_a_plain_model_and_an_adapter_that_peft_loads(tiny_model, group, tmp_path):
    policy = after(2, adapted(tiny_model), group)
    policy.save(tmp_path / "step", source_state={})
    plain = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    saved = load_file(tmp_path / "step" / "model" / "model.safetensors")
    assert saved.keys() == plain.keys()
    assert sorted(one.name for one in (tmp_path / "step" / "trainer" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "step" / "trainer" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "step" / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(theirs(IDS).logits, policy.module(IDS).logits)
        torch.testing.assert_close(merged(IDS).logits, policy.module(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_reward_models_head_trains_beside_the_adapters_and_peft_loads_both(tiny_model, group, tmp_path):
    policy = adapted(tiny_model, head="scalar")
    head = weights_of(policy)["score.weight"]
    after(2, policy, group, summed).save(tmp_path / "step", source_state={})
    assert not torch.equal(weights_of(policy)["score.weight"], head)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "step" / "trainer" / "adapter").eval()
    merged = open_policy(tmp_path / "step" / "model", head="scalar")
    torch.testing.assert_close(values(merged, group), values(policy, group), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, policy.module(IDS).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_the_merged_model_by_its_plain_names(tiny_model, group, dtype):
    policy = after(2, adapted(tiny_model, compute_dtype=dtype), group)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype)).eval()
    weights = dict(policy.weights())
    assert {name: (one.shape, one.dtype) for name, one in weights.items()} == {
        name: (one.shape, one.dtype) for name, one in plain.named_parameters()
    }
    with torch.no_grad():
        for name, param in plain.named_parameters():
            param.copy_(weights[name])
        near = 1e-4 if dtype == "float32" else 0.3
        torch.testing.assert_close(plain(IDS).logits, policy.module(IDS).logits, atol=near, rtol=near)


def test_the_sampler_draws_from_the_adapted_model(tiny_model, group):
    policy = after(3, adapted(tiny_model), group)
    prompt = (3, 9, 4, 8)
    with closing(LocalSampler(policy.module)) as sampler:
        drawn = asyncio.run(sampler.sample(prompt, SamplingParams(max_tokens=8), key=SampleKey(0, 0, 0, 0)))
    ids = np.array([*prompt, *drawn.ids], dtype=np.int32)
    sequence = TrainingSequence(token_ids=ids, train_mask=np.arange(len(ids)) >= len(prompt))
    found = torch.tensor(drawn.logprobs)
    torch.testing.assert_close(found, values(policy, [sequence]), atol=1e-4, rtol=1e-4)
    assert float((found - values(open_policy(policy.directory), [sequence])).abs().max()) > 1e-2


def test_only_the_layers_named_get_an_adapter(tiny_llama):
    policy = adapted(tiny_llama, target_modules=("q_proj", "mlp.up_proj"))
    owners = {name.split(".lora_")[0].rpartition(".")[2] for name in policy.masters.masters}
    assert owners == {"q_proj", "up_proj"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_prog", "no linear layer 'q_prog' in this model; did you mean 'q_proj'"),
        ("lm_head", "no linear layer 'lm_head' in this model"),
        ("embed_tokens", "no linear layer 'embed_tokens' in this model"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_refused(tiny_llama, target, message):
    with pytest.raises(ConfigError, match=f"policy.lora.target_modules: {message}"):
        adapted(tiny_llama, target_modules=("v_proj", target))


def test_what_does_not_fit_the_checkpoint_is_refused(tiny_llama, group, tmp_path):
    after(1, adapted(tiny_llama), group).save(tmp_path / "adapted", source_state={})
    after(1, open_policy(tiny_llama), group).save(tmp_path / "whole", source_state={})
    with pytest.raises(PolicyError, match=r"an adapter of another rank or for other layers; keep policy.lora as it was"):
        adapted(tiny_llama, rank=1).load(tmp_path / "adapted")
    with pytest.raises(PolicyError, match="no adapter to go on from"):
        adapted(tiny_llama).load(tmp_path / "whole")
    with pytest.raises(PolicyError, match="moments are those of other weights"):
        open_policy(tiny_llama).load(tmp_path / "adapted")
    with pytest.raises(PolicyError, match="has its adapters merged; open the policy from the base model, then load"):
        adapted(tmp_path / "adapted" / "model").load(tmp_path / "adapted")
