import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gym_bridge.errors import PolicyError
from gym_bridge.policy.loading import load_module
from gym_bridge.policy.samplers import rows
from gym_bridge.policy.samplers.generation import Request, _draw, generate, uniforms
from gym_bridge.policy.samplers.token_tree import TokenTree
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.settings import PolicySettings
from gym_bridge.schemas.tokens import SampleKey, SamplingParams, TrainingSequence
from tests.policy.test_families import FAMILIES, REFUSED, write_model

PROMPTS = (
    (5,),
    (7,),
    (5, 8, 9, 10),
    (5, 8, 9, 10),
    (5, 8, 9, 10),
    (5, 8, 9),
    (5, 8, 9, 11, 12, 13, 14, 15, 16),
    tuple(range(40, 75)),
    (*range(40, 70), 3, 2),
)


@pytest.fixture(scope="module")
def module(tiny_model):
    return load_module(tiny_model, device=torch.device("cpu"))


def sampled(module, prompts, *, first_key=0, tree=None, **params):
    requests = [
        Request(prompt, SamplingParams(**{"max_tokens": 12, **params}), SampleKey(0, first_key + index, 0, 0))
        for index, prompt in enumerate(prompts)
    ]
    generate(tree or TokenTree(module), requests)
    return [one.completion(0) for one in requests]


def assert_trainer_agrees(directory, prompts, completions):
    """The trainer computes the log-probs that were reported; returns how many there are."""
    sequences = [
        TrainingSequence(
            token_ids=np.array([*prompt, *one.ids], dtype=np.int32), train_mask=np.arange(len(prompt) + len(one.ids)) >= len(prompt)
        )
        for prompt, one in zip(prompts, completions, strict=True)
    ]
    policy = TorchPolicy(directory, PolicySettings(compute_dtype="float32"))
    for one, logprobs in zip(completions, policy.logprobs(sequences), strict=True):
        assert one.logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)
    return sum(len(one.ids) for one in completions)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[2:], PROMPTS[2:5], PROMPTS[:1], PROMPTS[:2]], ids=len)
def test_reported_logprobs_are_those_that_the_trainer_computes(tiny_model, module, prompts):
    completions = sampled(module, prompts, temperature=0.7)
    assert assert_trainer_agrees(tiny_model, prompts, completions) == 12 * len(prompts)


@pytest.mark.parametrize("name", ["mistral with a window", "gemma2", "gemma3", "gpt-oss"])
def test_a_window_counts_no_padding_and_no_ended_row(monkeypatch, tmp_path, name):
    monkeypatch.setattr(rows, "ROOM", 3)  # so that buffers are outgrown
    monkeypatch.setattr(rows, "LEAST_SHARED", 1)
    module = load_module(write_model(tmp_path, FAMILIES[name]), device=torch.device("cpu"))
    prompts = [*PROMPTS[7:], tuple(range(40, 60))] * 3
    completions = sampled(module, prompts, stop_token_ids=tuple(range(0, 5003, 15)), max_tokens=24)
    assert len({len(one.ids) for one in completions}) > 2
    assert assert_trainer_agrees(tmp_path, prompts, completions) > 40


def test_what_prompts_begin_with_is_computed_once_at_every_depth(module):
    computed = []
    hook = module.get_input_embeddings().register_forward_hook(lambda _, args, __: computed.append(args[0].numel()))
    system, tasks = tuple(range(300)), [tuple(range(300, 380)), tuple(range(310, 390))]
    prompts = [(*system, *tasks[index // 4], *range(20 + index % 4, 25)) for index in range(8)] * 3
    found = sampled(module, prompts, max_tokens=1)
    hook.remove()
    # the system prompt, two tasks, and 5, 4, 3 and 2 tokens after each
    assert sum(computed) == 300 + 2 * 80 + 2 * (5 + 4 + 3 + 2)
    for index in (0, 3, 5, 23):
        (alone,) = sampled(module, [prompts[index]], first_key=index, max_tokens=1)
        assert alone.ids == found[index].ids
        assert alone.logprobs == pytest.approx(found[index].logprobs, abs=1e-4)


def test_logits_that_are_not_finite_are_an_error(tiny_llama):
    broken = load_module(tiny_llama, device=torch.device("cpu"))
    broken.get_output_embeddings().weight.data[7, 3] = math.nan
    with pytest.raises(PolicyError, match="logits are not finite"):
        sampled(broken, [(5, 8)])


def test_a_model_that_keeps_a_state_is_refused(tmp_path):
    module = load_module(write_model(tmp_path, REFUSED["layers of conv"]), device=torch.device("cpu"))
    with pytest.raises(PolicyError, match="the in-process sampler cannot batch layers of conv of Lfm2ForCausalLM"):
        sampled(module, [(5, 8)])


def test_a_completion_does_not_depend_on_its_batch_mates(module):
    stops = {"stop_token_ids": tuple(range(0, 400, 15)), "max_tokens": 24}
    together = sampled(module, PROMPTS, **stops)
    assert len({len(one.ids) for one in together}) > 2  # rows end at different times, and leave the batch
    for index, prompt in enumerate(PROMPTS):
        (alone,) = sampled(module, [prompt], first_key=index, **stops)
        assert alone.ids == together[index].ids
        assert alone.logprobs == pytest.approx(together[index].logprobs, abs=1e-4)
        assert alone.finish_reason == together[index].finish_reason


def test_equal_prompts_under_different_keys_go_different_ways(module):
    assert len({one.ids for one in sampled(module, [PROMPTS[2]] * 8)}) == 8


def test_equal_keys_draw_equal_completions(module):
    assert sampled(module, PROMPTS) == sampled(module, PROMPTS)


def test_a_stop_token_ends_a_row_and_stays_in_it(module):
    stops = set(range(0, 400, 7))
    completions = sampled(module, PROMPTS * 3, stop_token_ids=tuple(stops), max_tokens=10)
    assert {one.finish_reason for one in completions} == {"stop", "length"}
    for one in completions:
        assert not stops & set(one.ids[:-1])
        assert (one.finish_reason == "stop") == (one.ids[-1] in stops)
        assert len(one.ids) == 10 or one.finish_reason == "stop"
        assert len(one.logprobs) == len(one.ids)


def test_every_row_has_a_limit_of_its_own(module):
    limits = (1, 5, 2, 9)
    requests = [Request((5, 8), SamplingParams(max_tokens=limit), SampleKey(0, 0, index, 0)) for index, limit in enumerate(limits)]
    generate(TokenTree(module), requests)
    assert [len(one.ids) for one in requests] == [1, 5, 2, 9]


def test_a_lower_limit_cuts_the_same_completion_short(module):
    (long,), (short,) = sampled(module, [(5, 8)], max_tokens=9), sampled(module, [(5, 8)], max_tokens=4)
    assert short.ids == long.ids[:4]


def test_temperature_zero_is_the_greedy_generation_of_transformers(tiny_model, module):
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for prompt, one in zip(PROMPTS, sampled(module, PROMPTS, temperature=0.0, stop_token_ids=(2,)), strict=True):
        ids = torch.tensor([prompt])
        expected = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=2)
        assert list(one.ids) == expected[0, len(prompt) :].tolist()


def test_rows_of_different_temperature_share_a_batch(module):
    greedy, warm = (
        Request((5, 8), SamplingParams(max_tokens=8, temperature=t), SampleKey(0, 0, i, 0)) for i, t in enumerate((0.0, 1.0))
    )
    generate(TokenTree(module), [greedy, warm])
    assert greedy.completion(0).ids == sampled(module, [(5, 8)], temperature=0.0, max_tokens=8)[0].ids
    assert greedy.ids != warm.ids


def draw(logits, noise, temperature=1.0):
    rows = torch.as_tensor(logits, dtype=torch.float32).expand(len(noise), -1)
    tokens, logprobs = _draw(rows, torch.full((len(noise),), temperature), torch.tensor(noise, dtype=torch.float64))
    torch.testing.assert_close(logprobs, torch.log_softmax(rows, dim=-1).gather(1, tokens[:, None])[:, 0])
    return tokens.tolist()


NEARLY_ONE = float(np.nextafter(1.0, 0.0))


def test_a_token_is_drawn_by_the_inverse_cdf():
    logits = [math.log(0.5), math.log(0.25), -math.inf, math.log(0.25)]
    assert draw(logits, [0.0, 0.499, 0.501, 0.749, 0.751, NEARLY_ONE]) == [0, 0, 1, 1, 3, 3]


def test_the_inverse_cdf_runs_through_blocks_of_the_vocabulary():
    probs = np.zeros(1000)
    probs[[255, 256, 700]] = 0.5, 0.25, 0.25
    with np.errstate(divide="ignore"):
        assert draw(np.log(probs), [0.0, 0.499, 0.501, 0.749, 0.751, NEARLY_ONE]) == [255, 255, 256, 256, 700, 700]


def test_temperature_sharpens_the_distribution():
    logits = [math.log(0.75), math.log(0.25)]  # at temperature 0.5 the odds are squared: 0.9 to 0.1
    assert draw(logits, [0.74, 0.76]) == [0, 1]
    assert draw(logits, [0.89, 0.91], temperature=0.5) == [0, 1]
    assert draw(logits, [0.99], temperature=0.0) == [0]


@pytest.mark.parametrize("likely", [{3, 300, 400}, {300, 400}, {400}, {699}])
def test_a_token_of_probability_zero_is_never_drawn(likely):
    logits = np.full(900, -np.inf)
    logits[sorted(likely)] = np.linspace(0.0, -20.0, len(likely))
    noise = [0.0, NEARLY_ONE, *np.linspace(0, 1, 500, endpoint=False), *(1 - np.logspace(-16, -1, 200))]
    assert set(draw(logits, noise)) == likely


def test_many_keys_draw_the_softmax():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(600, generator=generator) * 2
    num_keys = 20_000
    drawn = draw(logits, [uniforms(SampleKey(0, index, 0, 0), 1)[0] for index in range(num_keys)])
    expected = torch.softmax(logits.double(), dim=0).numpy() * num_keys
    found = np.bincount(drawn, minlength=600)
    common = expected >= 10
    expected = np.append(expected[common], expected[~common].sum())
    found = np.append(found[common], found[~common].sum())
    statistic, freedom = float(((found - expected) ** 2 / expected).sum()), len(expected) - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_random_numbers_are_a_function_of_the_whole_key():
    assert uniforms(SampleKey(1, 2, 3, 4), 5).tolist() == uniforms(SampleKey(1, 2, 3, 4), 9)[:5].tolist()
    others = [SampleKey(0, 2, 3, 4), SampleKey(1, 0, 3, 4), SampleKey(1, 2, 0, 4), SampleKey(1, 2, 3, 0), SampleKey(1, 23, 0, 4)]
    assert len({uniforms(key, 1)[0] for key in (SampleKey(1, 2, 3, 4), *others)}) == 6
