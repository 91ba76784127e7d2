"""Tiny models of many families: a packed step against transformers' own forward pass over padded rows."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy import head as head_module
from gym_bridge.policy.family import HFFamily
from gym_bridge.policy.loading import load_module
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence
from tests.policy.stage import assert_merged_takes_the_same_step, gradients_of_step, open_policy, weighted
from tests.tiny_models import ENDS, SIZES

MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
GEMMA = {"vocab_size": 5003, "head_dim": 16, "query_pre_attn_scalar": 16, **MIXED}
FAMILIES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "smollm": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2 with a window": {"model_type": "qwen2", "use_sliding_window": True, **MIXED},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma2": {"model_type": "gemma2", **GEMMA, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5},
    "gemma3": {"model_type": "gemma3_text", **GEMMA},
    "mistral with a window": {"model_type": "mistral", "sliding_window": 5, "head_dim": 8},
    "granite": {"model_type": "granite", "logits_scaling": 8.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "cohere": {"model_type": "cohere", "logit_scale": 0.25},
    "phi, whose head has a bias": {"model_type": "phi"},
    "gpt-oss": {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, **MIXED},
    "qwen3 of experts": {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
WINDOWED = [name for name, options in FAMILIES.items() if "sliding_window" in options]


def write_model(directory, options, **more):
    """A model with random weights, large enough that attention, window and factors show in the log-probs."""
    torch.set_num_threads(1)
    options = {**SIZES, **ENDS, **options, **more}
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    torch.manual_seed(3)
    module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for param in module.parameters():
            if param.dim() > 1:
                param.normal_(std=0.15)
            else:
                param.uniform_(0.5, 1.0)
    module.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models("gemma2"): its directory; each is written once."""
    written = {}

    def directory_of(name):
        if name not in written:
            written[name] = write_model(tmp_path_factory.mktemp("model"), FAMILIES[name])
        return written[name]

    return directory_of


@pytest.fixture(params=FAMILIES)
def model(request, models):
    return models(request.param)


def sequence(prompt, *turns, advantage):
    """A sequence of a prompt and answers, with an untrained token before each further answer."""
    marks = [0] * len(prompt)
    ids = list(prompt)
    for number, turn in enumerate(turns):
        ids += [5] * bool(number) + list(turn)
        marks += [0] * bool(number) + [1] * len(turn)
    return TrainingSequence(token_ids=np.array(ids, np.int32), train_mask=np.array(marks, bool), advantage=advantage)


@pytest.fixture(scope="module")
def step():
    """A group of three over a prompt longer than the window, a prompt that begins like it, and a sequence that shares nothing."""
    draw = np.random.default_rng(0)
    prompt, *answers = (draw.integers(6, 400, size).tolist() for size in (9, 7, 3, 11, 4, 6, 8))
    return [
        sequence(prompt, answers[0], advantage=1.5),
        sequence(prompt, answers[1], answers[2], advantage=-1.0),
        sequence(prompt, answers[3], advantage=0.5),
        sequence([*prompt[:6], 7, 8], answers[4], advantage=-0.7),
        sequence(answers[5], answers[0], advantage=2.0),
    ]


def padded(directory, sequences, **changes):
    """Log-probs, loss and gradients by transformers' eager attention over one batch, padded on the right."""
    module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    for name, value in changes.items():
        setattr(module.config, name, value)
    width = max(len(one.token_ids) for one in sequences)
    ids = torch.tensor([np.pad(one.token_ids, (0, width - len(one.token_ids))).tolist() for one in sequences])
    here = torch.tensor([[1] * len(one.token_ids) + [0] * (width - len(one.token_ids)) for one in sequences])
    logprobs = torch.log_softmax(module(input_ids=ids, attention_mask=here, use_cache=False).logits, dim=-1)
    found = []
    for row, one in enumerate(sequences):
        trained = torch.from_numpy(np.flatnonzero(one.train_mask))
        found.append(logprobs[row, trained - 1, ids[row, trained]])
    num_tokens = sum(map(len, found))
    loss = -sum(one.advantage * each.sum() for one, each in zip(sequences, found, strict=True)) / num_tokens
    loss.backward()
    gradients = {name: param.grad for name, param in module.named_parameters() if param.grad is not None}
    return [one.detach() for one in found], loss.item(), gradients


@pytest.fixture(scope="module")
def expected(models, step):
    """expected(directory): what `padded` gives for the step, computed once."""
    known = {}

    def of(directory):
        if directory not in known:
            known[directory] = padded(directory, step)
        return known[directory]

    return of


def assert_step_equals(policy, microbatches, expected):
    """Loss and gradients of a step, relative to the largest gradient of each parameter."""
    _, loss, gradients = expected
    found, result = gradients_of_step(policy, microbatches, weighted)
    assert result.metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sharing", [True, False], ids=["shared", "apart"])
def test_a_packed_step_equals_a_padded_one(model, step, expected, sharing):
    assert_step_equals(open_policy(model, prefix_sharing=sharing), [step], expected(model))


def test_a_step_does_not_depend_on_how_it_is_cut_into_microbatches(model, step, expected):
    assert_step_equals(open_policy(model), [[step[4], step[0]], [step[3]], [step[2], step[1]]], expected(model))


@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm", "gemma2", "granite", "phi, whose head has a bias"])
def test_a_step_does_not_depend_on_how_many_logits_exist_at_a_time(monkeypatch, models, step, expected, name):
    monkeypatch.setattr(head_module, "CHUNK", 5)
    assert sum(one.num_trained for one in step) > 20
    assert_step_equals(open_policy(models(name)), [step], expected(models(name)))


@pytest.mark.parametrize("settings", [{"microbatch_tokens": 1}, {"microbatch_tokens": 30}, {"prefix_sharing": False}])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_logprobs_come_in_the_order_of_the_sequences(models, step, expected, settings, name):
    for one, other in zip(open_policy(models(name), **settings).logprobs(step), expected(models(name))[0], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_activations_that_are_computed_again_are_the_same(models, step, expected):
    directory = models("gemma2")
    assert_step_equals(open_policy(directory, activation_checkpointing=True), [step], expected(directory))


@pytest.mark.parametrize("name", WINDOWED)
def test_the_window_of_these_models_is_shorter_than_their_sequences(models, step, expected, name):
    """Otherwise the tests above would not tell a window from none."""
    without, _, _ = padded(models(name), step, sliding_window=500)
    assert max(float((one - other).abs().max()) for one, other in zip(without, expected(models(name))[0], strict=True)) > 1e-3


@pytest.mark.parametrize(
    ("name", "forgotten"), [("granite", {"scale": 1.0}), ("cohere", {"scale": 1.0}), ("gemma2", {"softcap": None})]
)
def test_a_factor_or_cap_that_is_not_heeded_is_noticed_when_the_model_is_loaded(models, name, forgotten):
    class Forgetful(HFFamily):
        def output_head(self, module):
            return replace(super().output_head(module), **forgotten)

    with pytest.raises(PolicyError, match="gives packed sequences other values than the same alone"):
        Forgetful(PolicySettings()).load(models(name), device=torch.device("cpu"), head="lm")


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_that_is_not_heeded_is_noticed_when_the_model_is_loaded(monkeypatch, models, name):
    from gym_bridge.policy import family

    whole = family.block_rows
    monkeypatch.setattr(family, "block_rows", lambda packed, window: whole(packed))
    with pytest.raises(PolicyError, match="gives packed sequences other values than the same alone"):
        HFFamily(PolicySettings()).load(models(name), device=torch.device("cpu"), head="lm")


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mistral with a window"])
def test_scores_of_packed_sequences_equal_those_of_each_alone(models, step, name):
    policy = open_policy(models(name), head="scalar")
    module = AutoModelForSequenceClassification.from_pretrained(models(name), num_labels=1, attn_implementation="eager").eval()
    module.get_parameter("score.weight").data.copy_(policy.module.get_parameter("score.weight"))
    for one, scores in zip(step, policy.logprobs(step), strict=True):
        for place, score in zip(np.flatnonzero(one.train_mask), scores, strict=True):
            ids = torch.from_numpy(one.token_ids[: place + 1]).long()
            with torch.no_grad():
                assert score.item() == pytest.approx(module(input_ids=ids[None], use_cache=False).logits.item(), abs=1e-5)


REFUSED = {
    "layers of chunked_attention": {"model_type": "llama4_text", "num_local_experts": 2, "head_dim": 8},
    "attention code of its own": {"model_type": "stablelm"},
    "layers of conv": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_model_whose_sequences_cannot_be_packed_is_refused(tmp_path, why):
    with pytest.raises(PolicyError, match=f"{tmp_path.name}.*{why}"):
        open_policy(write_model(tmp_path, REFUSED[why]))


def test_flex_attention_on_a_cpu_is_refused(models):
    with pytest.raises(ConfigError, match="no backward pass on cpu"):
        open_policy(models("llama"), attention="flex")


def test_an_unknown_family_is_refused(models):
    with pytest.raises(ConfigError, match="unknown family; did you mean 'hf'"):
        open_policy(models("llama"), family="hff")


def test_a_family_of_the_users_own_is_used(monkeypatch, tmp_path, models, step):
    (tmp_path / "doubled_family.py").write_text(
        "from dataclasses import replace\n"
        "from gym_bridge.policy.family import HFFamily\n"
        "class Doubled(HFFamily):\n"
        "    def hidden(self, module, packed):\n"
        "        return 2 * super().hidden(module, packed)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    doubled = open_policy(models("llama"), family="doubled_family:Doubled")
    plain = open_policy(models("llama"))
    plain.module.get_output_embeddings().weight.data.mul_(2)
    for one, other in zip(doubled.logprobs(step), plain.logprobs(step), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    sys.modules.pop("doubled_family")


@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm", "gemma2", "gemma3"])
def test_with_its_adapters_merged_a_model_takes_the_same_step(models, step, name, tmp_path):
    adapted = open_policy(models(name), lora={"rank": 2}, lr=1e-2)
    for _ in range(2):
        adapted.step([step], weighted)
    assert_merged_takes_the_same_step(adapted, tmp_path / "step", [step])


class Sizes(TorchDispatchMode):
    """The most numbers that one tensor holds."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.numel())
        return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_step_makes_logits_of_all_its_tokens(monkeypatch, models, step, dtype):
    monkeypatch.setattr(head_module, "CHUNK", 4)
    directory = models("gemma2")
    policy = open_policy(directory, compute_dtype=dtype)
    vocabulary, hidden = 5003, SIZES["hidden_size"]
    with Sizes() as sizes:
        policy.step([step], weighted)
    assert sizes.most <= max(vocabulary * hidden, 4 * vocabulary) < sum(one.num_trained for one in step) * vocabulary


def test_a_model_with_capped_attention_loads_for_sampling_too(models):
    ids = torch.tensor([[5, 9, 4, 8]])
    whole = load_module(models("gemma2"), device=torch.device("cpu"))
    eager = load_module(models("gemma2"), device=torch.device("cpu"), attention="eager")
    with torch.inference_mode():
        torch.testing.assert_close(whole(ids).logits, eager(ids).logits)


def test_the_window_of_the_model_stays_what_it_was(models):
    policy = open_policy(models("mistral with a window"))
    assert policy.module.config.sliding_window == 5
    assert json.loads((models("mistral with a window") / "config.json").read_text())["sliding_window"] == 5


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, "selective"])
@pytest.mark.parametrize("attention", ["flex", "sdpa"])
@pytest.mark.parametrize("name", ["smollm", "gemma2", "gemma3", "mistral with a window"])
def test_a_step_on_a_gpu_equals_one_on_the_cpu(tmp_path, step, name, attention, checkpointing):
    directory = write_model(tmp_path, FAMILIES[name], hidden_size=64, head_dim=16)
    expected = padded(directory, step)
    policy = open_policy(directory, device="cuda", attention=attention, activation_checkpointing=checkpointing)
    found, result = gradients_of_step(policy, [step], weighted)
    assert result.metrics["loss"] == pytest.approx(expected[1], abs=1e-4)
    for gradient_name, gradient in expected[2].items():
        torch.testing.assert_close(found[gradient_name].cpu(), gradient, atol=1e-3, rtol=1e-3)
