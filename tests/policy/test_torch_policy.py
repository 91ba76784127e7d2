import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.schemas.seams import Loss
from tests.policy.stage import gradients_of_step, mean_nll, open_policy, same, weighted, weights_of


def alone(directory, sequences):
    """Log-probs, loss and gradients of the sequences one by one, from transformers' own logits."""
    module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    num_tokens = sum(one.num_trained for one in sequences)
    found, total = [], torch.tensor(0.0)
    for one in sequences:
        ids = torch.from_numpy(one.token_ids).long()
        logprobs = torch.log_softmax(module(input_ids=ids[None]).logits[0, :-1].float(), dim=-1)
        chosen = logprobs[torch.arange(len(ids) - 1), ids[1:]][torch.from_numpy(one.train_mask[1:])]
        found.append(chosen.detach())
        total = total - one.advantage * chosen.sum() / num_tokens
    total.backward()
    return found, total.item(), {name: param.grad for name, param in module.named_parameters()}


def test_packed_logprobs_equal_those_of_each_sequence_alone(tiny_model, group):
    expected, _, _ = alone(tiny_model, group)
    for microbatch_tokens in (1, 16, 1024):
        found = open_policy(tiny_model, microbatch_tokens=microbatch_tokens).logprobs(group)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [[4], [1, 3], [2, 2], [1, 1, 1, 1], [3, 1]])
def test_loss_and_every_gradient_equal_those_of_the_sequences_alone_however_the_step_is_cut(tiny_model, group, cut):
    _, loss, expected = alone(tiny_model, group)
    rest = list(group)
    microbatches = [[rest.pop(0) for _ in range(size)] for size in cut]
    found, result = gradients_of_step(open_policy(tiny_model), microbatches, weighted)
    assert result.metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    norm = math.sqrt(sum(float(one.square().sum()) for one in expected.values()))
    assert result.metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_a_step_reports_what_it_computed(tiny_llama, group):
    policy = open_policy(tiny_llama, warmup_steps=3)
    metrics = policy.step([group], mean_nll).metrics
    # 3 + 2 + 5 + 1 trained tokens; shared: 3 tokens by all, 2 more by the first three
    assert (metrics["num_trained_tokens"], metrics["num_packed_tokens"]) == (11, 3 + 2 + 3 + 2 + 8 + 2)
    assert metrics["lr"] == pytest.approx(1e-3 / 4)
    assert policy.version == 1
    assert 0 < metrics["entropy"] < math.log(400)
    for name, count in (("trained_tokens_per_s", 11), ("tokens_per_s", 20)):
        assert metrics[name] == pytest.approx(count / metrics["train_s"])
    assert 0 < metrics["peak_memory_gib"] < 1024
    assert [policy.step([group], mean_nll).metrics["lr"] for _ in range(4)] == pytest.approx([5e-4, 7.5e-4, 1e-3, 1e-3])


def test_a_loss_may_be_made_of_the_entropy(tiny_llama, group):
    def spread_out(logprobs, columns):
        return Loss(-columns.entropies.sum() / columns.num_tokens)

    policy = open_policy(tiny_llama, lr=1e-2)
    before, *_, after = [policy.step([group], spread_out).metrics["entropy"] for _ in range(4)]
    assert after > before


def test_a_microbatch_that_trains_nothing_changes_nothing(tiny_llama, group, training_sequence):
    silent = training_sequence("ppp", [4, 5, 6])
    first, second = open_policy(tiny_llama), open_policy(tiny_llama)
    first.step([group], mean_nll)
    second.step([group, [silent]], mean_nll)
    assert same(weights_of(first), weights_of(second))


def test_gradients_are_clipped_to_the_norm(tiny_llama, group):
    free, bound = open_policy(tiny_llama, max_grad_norm=1e9), open_policy(tiny_llama, max_grad_norm=0.5)
    norm = free.step([group], mean_nll).metrics["grad_norm"]
    assert norm > 0.5
    assert bound.step([group], mean_nll).metrics["grad_norm"] == pytest.approx(norm)
    moments = bound.masters.state_tensors()
    squares = sum(float(moments[name].square().sum()) for name in moments if name.startswith("exp_avg."))
    assert math.sqrt(squares) == pytest.approx(0.1 * 0.5, rel=1e-3)  # the first moment is (1 - 0.9) times the clipped gradient


def test_an_update_of_a_millionth_survives_a_hundred_steps_in_bfloat16(tiny_llama, group):
    policy = open_policy(tiny_llama, compute_dtype="bfloat16", lr=1e-6)
    before = weights_of(policy)["model.norm.weight"]
    for _ in range(100):
        policy.step([group], mean_nll)
    moved = (weights_of(policy)["model.norm.weight"] - before).abs()
    assert policy.module.get_parameter("model.norm.weight").dtype == torch.bfloat16
    assert moved.dtype == torch.float32
    assert 5e-5 < float(moved.max()) < 1.05e-4  # 100 steps of 1e-6; bfloat16 near 1 moves by 8e-3 or not at all


def test_pure_bfloat16_loses_the_same_update(tiny_llama, group):
    policy = open_policy(tiny_llama, compute_dtype="bfloat16", master_dtype="bfloat16", allow_lost_updates=True, lr=1e-6)
    before = weights_of(policy)["model.norm.weight"]
    for _ in range(100):
        policy.step([group], mean_nll)
    assert before.dtype == torch.bfloat16
    assert torch.equal(weights_of(policy)["model.norm.weight"], before)  # all within 0.5 and 1.5, where it moves by 2e-3 at least


def test_bfloat16_logprobs_are_near_those_in_float32(tiny_llama, group):
    exact = torch.cat(open_policy(tiny_llama).logprobs(group))
    rough = torch.cat(open_policy(tiny_llama, compute_dtype="bfloat16").logprobs(group))
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.2


def test_bfloat16_gradients_add_up_over_microbatches(tiny_llama, group):
    whole, cut = (open_policy(tiny_llama, compute_dtype="bfloat16", max_grad_norm=1e9) for _ in range(2))
    whole.step([group], mean_nll)
    cut.step([[one] for one in group], mean_nll)
    moments, others = whole.masters.state_tensors(), cut.masters.state_tensors()
    for name in (name for name in moments if name.startswith("exp_avg.")):
        assert float((moments[name] - others[name]).norm()) < 0.05 * float(moments[name].norm())


def infinite_loss(logprobs, columns):
    return Loss(logprobs.sum() * math.inf)


def infinite_gradient(logprobs, columns):
    return Loss(torch.sqrt(logprobs - logprobs.detach()).sum())  # 0 with a slope of infinity


def failing_on_two(logprobs, columns):
    if int(columns.sequence.max()) == 1:
        raise PolicyError("no log-prob")
    return mean_nll(logprobs, columns)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (infinite_loss, "the loss is -inf at step 2"),
        (infinite_gradient, "the gradient's norm is (nan|inf) at step 2"),
        (failing_on_two, "no log-prob"),
    ],
)
def test_a_step_that_fails_leaves_no_trace(tiny_llama, group, dtype, loss_fn, message):
    policy, untouched = open_policy(tiny_llama, compute_dtype=dtype), open_policy(tiny_llama, compute_dtype=dtype)
    for one in (policy, untouched):
        one.step([group], mean_nll)
    before = weights_of(policy)
    with pytest.raises(PolicyError, match=message):
        policy.step([group[:1], group[1:3], group[3:]], loss_fn)
    assert policy.version == 1
    assert same(weights_of(policy), before)
    for one in (policy, untouched):
        one.step([group], mean_nll)
    assert same(weights_of(policy), weights_of(untouched))


def test_an_evaluation_reports_the_loss_of_a_step_and_changes_nothing(tiny_llama, group):
    policy, untouched = open_policy(tiny_llama), open_policy(tiny_llama)
    found = policy.evaluate([group[:1], group[1:]], weighted)
    assert policy.version == 0
    assert not any(param.grad.any() for param in policy.module.parameters())
    stepped, expected = policy.step([group], weighted).metrics, untouched.step([group], weighted).metrics
    assert (found["loss"], found["entropy"]) == pytest.approx((expected["loss"], expected["entropy"]), rel=1e-5)
    assert (stepped["loss"], found["num_trained_tokens"]) == (expected["loss"], 11)
    assert same(weights_of(policy), weights_of(untouched))


def test_an_evaluation_adds_up_the_losss_own_metrics(tiny_llama, group):
    def counted(logprobs, columns):
        return Loss(mean_nll(logprobs, columns).value, {"tokens": float(len(logprobs))})

    assert open_policy(tiny_llama).evaluate([group[:1], group[1:]], counted)["tokens"] == 11


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reopened", [True, False])
def test_saved_and_loaded_it_goes_on_bit_for_bit(tiny_model, group, tmp_path, dtype, reopened):
    whole = open_policy(tiny_model, compute_dtype=dtype, warmup_steps=5)
    for _ in range(2):
        whole.step([group], weighted)
    whole.save(tmp_path / "step", source_state={"step": 2})
    resumed = open_policy(tmp_path / "step" / "model" if reopened else tiny_model, compute_dtype=dtype, warmup_steps=5)
    resumed.load(tmp_path / "step")
    assert resumed.version == 2
    assert same(weights_of(resumed), weights_of(whole))
    first, second = whole.step([group], weighted).metrics, resumed.step([group], weighted).metrics
    assert (first["loss"], first["grad_norm"], first["lr"]) == (second["loss"], second["grad_norm"], second["lr"])
    assert same(weights_of(resumed), weights_of(whole))
    assert same(resumed.masters.state_tensors(), whole.masters.state_tensors())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_address_of_a_file_reaches_the_kernels(tiny_llama, tmp_path, dtype):
    for name in ("x", "xx", "xxx"):  # the header grows, the tensors behind it move
        shutil.copytree(tiny_llama, tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        save_file(load_file(file), file, metadata={"format": "pt", "name": name * 3})
        policy = open_policy(tmp_path / name, compute_dtype=dtype)
        tensors = [*policy.module.parameters(), *policy.masters.masters.values()]
        assert {one.data_ptr() % 64 for one in tensors} == {0}


def test_loading_takes_back_the_steps_since(tiny_llama, group, tmp_path):
    policy = open_policy(tiny_llama)
    policy.step([group], mean_nll)
    policy.save(tmp_path / "step", source_state={})
    reopened = open_policy(tmp_path / "step" / "model")
    reopened.load(tmp_path / "step")
    reopened.step([group], mean_nll)
    reopened.load(tmp_path / "step")
    assert reopened.version == 1
    assert same(weights_of(reopened), weights_of(policy))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_is_one_that_transformers_loads_with_equal_logits(tiny_model, group, tmp_path, dtype):
    policy = open_policy(tiny_model, compute_dtype=dtype)
    policy.step([group], weighted)
    policy.save(tmp_path / "step", source_state={})
    ids = torch.tensor([[3, 9, 4, 8, 20, 31]])
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "step" / "model", dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        assert torch.equal(module(ids).logits, policy.module(ids).logits)
    saved = load_file(tmp_path / "step" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "step" / "model").dtype == torch.float32


def test_weights_are_named_and_in_the_compute_dtype(tiny_llama):
    weights = dict(open_policy(tiny_llama, compute_dtype="bfloat16").weights())
    assert weights["model.norm.weight"].shape == (32,)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert not any(tensor.requires_grad for tensor in weights.values())


def test_every_checkpoint_carries_the_tokenizer_even_when_the_first_directory_is_gone(tiny_llama, group, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "old")
    policy = open_policy(tmp_path / "old")
    shutil.rmtree(tmp_path / "old")
    policy.step([group], mean_nll)
    policy.save(tmp_path / "step", source_state={})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "step" / "model" / name).read_bytes() == (tiny_llama / name).read_bytes()


def test_a_checkpoint_replaces_the_one_that_stands_there(tiny_llama, group, tmp_path):
    policy = open_policy(tiny_llama)
    policy.save(tmp_path / "step", source_state={"step": 0})
    policy.step([group], mean_nll)
    policy.save(tmp_path / "step", source_state={"step": 1})
    fresh = open_policy(tiny_llama)
    fresh.load(tmp_path / "step")
    assert fresh.version == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["step"]


def test_a_disk_that_refuses_is_a_policy_error(tiny_llama, tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(PolicyError, match="cannot save"):
        open_policy(tiny_llama).save(tmp_path / "file" / "step", source_state={})


@pytest.mark.parametrize("damage", ["missing", "torn tensors", "torn state"])
def test_half_a_checkpoint_is_a_policy_error(tiny_llama, group, tmp_path, damage):
    policy = open_policy(tiny_llama)
    policy.step([group], mean_nll)
    policy.save(tmp_path / "step", source_state={})
    trainer = tmp_path / "step" / "trainer"
    if damage == "missing":
        shutil.rmtree(trainer)
    else:
        file = trainer / ("optimizer.safetensors" if damage == "torn tensors" else "state.json")
        file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(PolicyError, match="no whole checkpoint"):
        policy.load(tmp_path / "step")


def test_a_directory_without_a_model_is_a_policy_error(tmp_path):
    with pytest.raises(PolicyError, match="transformers cannot load this model"):
        open_policy(tmp_path)


def test_a_bfloat16_file_trains_from_float32_masters(tmp_path, group):
    config = LlamaConfig(vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {one.dtype for one in weights_of(open_policy(tmp_path)).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "policy.device=gpu: no device of torch; expected cpu, cuda, cuda:1, ..."),
        ("meta", "policy.device=meta: not on this machine; it has cpu"),
        ("cuda:99", "policy.device=cuda:99: not on this machine; it has cpu"),
    ],
)
def test_a_device_that_is_not_there_is_told_in_one_line(tiny_llama, name, message):
    with pytest.raises(ConfigError) as told:
        open_policy(tiny_llama, device=name)
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)
