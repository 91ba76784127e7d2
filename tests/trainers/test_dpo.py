import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.policy.reference import with_ref_logprobs
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import DPOAlgorithm, DPOSettings, PreferenceData
from gym_bridge.tokens.renderers import load_renderer
from gym_bridge.tokens.sample_files import Limits, read_samples
from gym_bridge.trainers.dpo import DPOSource, other_answers, pair_reader, preference_loss
from gym_bridge.trainers.epochs import Dataset
from tests.policy.test_torch_policy import gradients_of_step
from tests.tokens.vocabularies import write_qwen3

LOSSES = ("sigmoid", "robust", "ipo", "simpo", "orpo", "kto")


def settings(*, policy=None, **algorithm):
    return DPOSettings.model_validate(
        {
            "data": {"train": "pairs.jsonl", "max_length": 40},
            "policy": {"compute_dtype": "float32", "lr": 1e-3, **(policy or {})},
            "algorithm": {"batch_size": 2, **algorithm},
        }
    )


@pytest.fixture
def pairs(training_sequence):
    """Five pairs over three prompts; sides of different lengths, one with a tool output in it."""
    return [
        (training_sequence("pppTT", [9, 4, 8, 31, 2]), training_sequence("pppTTT", [9, 4, 8, 77, 78, 2])),
        (training_sequence("pppTppTT", [9, 4, 8, 31, 5, 6, 32, 2]), training_sequence("pppTT", [9, 4, 8, 60, 2])),
        (training_sequence("ppppTT", [9, 4, 7, 7, 40, 2]), training_sequence("ppppTTTT", [9, 4, 7, 7, 31, 32, 33, 2])),
        (training_sequence("ppTTT", [9, 3, 31, 32, 2]), training_sequence("ppTT", [9, 3, 90, 2])),
        (training_sequence("ppTT", [9, 3, 50, 2]), training_sequence("ppTTT", [9, 3, 91, 92, 2])),
    ]


def referred(pairs, *, shift=0.3):
    """The pairs with made-up log-probs of a reference."""
    generator = np.random.default_rng(0)

    def one(sequence):
        made = -2 - shift * generator.random(len(sequence.token_ids), dtype=np.float32)
        return replace(sequence, ref_logprobs=np.where(sequence.train_mask, made, np.float32("nan")))

    return [tuple(map(one, pair)) for pair in pairs]


def open_source(pairs, chosen, policy, directory):
    refer = partial(with_ref_logprobs, directory=directory / "ref", model="start", compute=policy.logprobs)
    return DPOSource(Dataset.of(pairs), chosen, refer=refer, logprobs=policy.logprobs)


def alone(directory, pairs, algorithm):
    """Loss and gradients from transformers' own logits, each side by itself, with sigmoid DPO written out."""
    module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    total = torch.tensor(0.0)
    for pair in pairs:
        ratios, likelihood = [], torch.tensor(0.0)
        for side, one in enumerate(pair):
            ids = torch.from_numpy(one.token_ids).long()
            logprobs = torch.log_softmax(module(input_ids=ids[None]).logits[0, :-1], dim=-1)
            chosen = logprobs[torch.arange(len(ids) - 1), ids[1:]][torch.from_numpy(one.train_mask[1:])]
            ratios.append(chosen.sum() - float(np.nansum(one.ref_logprobs)))
            if side == 0:
                likelihood = chosen.mean()
        total = total - torch.log(torch.sigmoid(algorithm.beta * (ratios[0] - ratios[1]))) / len(pairs)
        total = total - algorithm.sft_weight * likelihood / len(pairs)
    total.backward()
    return total.item(), {name: param.grad for name, param in module.named_parameters()}


@pytest.mark.parametrize("cut", [[5], [1, 1, 1, 1, 1], [2, 3]])
def test_loss_and_every_gradient_equal_those_of_the_sides_alone_however_the_step_is_cut(tiny_model, pairs, cut):
    given, algorithm = referred(pairs), DPOAlgorithm(beta=0.2, sft_weight=0.5)
    loss, expected = alone(tiny_model, given, algorithm)
    rest = list(given)
    microbatches = [[one for _ in range(size) for one in rest.pop(0)] for size in cut]
    found, result = gradients_of_step(TorchPolicy(tiny_model, settings().policy), microbatches, preference_loss(algorithm))
    assert result.metrics["loss"] == pytest.approx(loss, abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    packed = result.metrics["num_packed_tokens"]
    assert packed < sum(len(one.token_ids) for pair in given for one in pair)  # prompts are shared within each pair at least


@pytest.mark.parametrize("loss", LOSSES)
def test_any_cut_into_microbatches_gives_one_loss_one_gradient_and_one_set_of_metrics(tiny_llama, pairs, loss):
    given = referred(pairs)
    loss_fn = preference_loss(DPOAlgorithm(loss=loss, beta=0.4), baseline=lambda: 0.25)
    whole = gradients_of_step(TorchPolicy(tiny_llama, settings().policy), [[one for pair in given for one in pair]], loss_fn)
    parts = gradients_of_step(TorchPolicy(tiny_llama, settings().policy), [list(pair) for pair in given], loss_fn)
    scale = max(1.0, whole[1].metrics["grad_norm"])  # that of ipo is in the hundreds
    for name, gradient in whole[0].items():
        torch.testing.assert_close(parts[0][name] / scale, gradient / scale, atol=1e-5, rtol=1e-4)
    for name in {"loss", "grad_norm", "num_trained_tokens", "accuracy", "margin"} | ({"kl"} & {*whole[1].metrics}):
        assert parts[1].metrics[name] == pytest.approx(whole[1].metrics[name], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_loss_is_ln_2_and_the_first_kl_0(tiny_model, pairs, tmp_path, dtype):
    chosen = settings(policy={"compute_dtype": dtype})
    policy = TorchPolicy(tiny_model, chosen.policy)
    step = open_source(pairs, chosen, policy, tmp_path).next()
    assert step is not None
    metrics = policy.step(step.microbatches, preference_loss(chosen.algorithm)).metrics
    if dtype == "float32":
        assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    else:  # the reference was computed in other microbatches, and bfloat16 rounds by them
        assert metrics["loss"] == pytest.approx(math.log(2), abs=2e-2)


@pytest.mark.parametrize("algorithm", [*({"loss": one} for one in LOSSES), {"length_normalised": True}, {"sft_weight": 1.0}])
def test_every_loss_falls_and_sets_the_chosen_sides_above_the_rejected(tiny_llama, pairs, tmp_path, algorithm):
    chosen = settings(**{"beta": 0.5, "epochs": 8, "batch_size": 5, **algorithm})
    policy = TorchPolicy(tiny_llama, chosen.policy)
    source = open_source(pairs, chosen, policy, tmp_path)
    loss_fn = preference_loss(chosen.algorithm, baseline=lambda: source.baseline)
    seen = []
    while (step := source.next()) is not None:
        seen.append(policy.step(step.microbatches, loss_fn).metrics)
        source.stepped(policy.version)
    assert len(seen) == 8
    assert seen[-1]["loss"] < seen[0]["loss"]
    assert seen[-1]["accuracy"] >= 0.8
    assert seen[-1]["margin"] > seen[0]["margin"] + 0.1
    assert ("kl" in seen[0]) == (chosen.algorithm.loss not in ("simpo", "orpo"))
    if "kl" in seen[0]:
        assert seen[-1]["kl"] > seen[0]["kl"] >= -1e-6


def test_rewards_accuracy_margin_and_kl_are_those_of_the_pairs(tiny_llama, pairs):
    given = referred(pairs)
    policy = TorchPolicy(tiny_llama, settings().policy)
    sides = [one for pair in given for one in pair]
    logprobs = policy.logprobs(sides)
    ratios = [now - torch.from_numpy(one.ref_logprobs[one.train_mask]) for now, one in zip(logprobs, sides, strict=True)]
    rewards = [0.2 * float(one.sum()) for one in ratios]
    metrics = policy.step([sides], preference_loss(DPOAlgorithm(beta=0.2))).metrics
    good, bad = rewards[0::2], rewards[1::2]
    assert metrics["reward_chosen"] == pytest.approx(sum(good) / 5, rel=1e-4)
    assert metrics["reward_rejected"] == pytest.approx(sum(bad) / 5, rel=1e-4)
    assert metrics["margin"] == pytest.approx((sum(good) - sum(bad)) / 5, rel=1e-4)
    assert metrics["accuracy"] == sum(g > b for g, b in zip(good, bad, strict=True)) / 5
    parted = torch.cat(ratios)
    assert metrics["kl"] == pytest.approx(float((torch.exp(parted) - 1 - parted).mean()), rel=1e-4)


def test_the_parts_of_a_loss_are_reported_and_add_up(tiny_llama, pairs):
    sides = [one for pair in referred(pairs) for one in pair]
    for algorithm, weight in ((DPOAlgorithm(sft_weight=0.3), 0.3), (DPOAlgorithm(loss="orpo"), 1.0)):
        metrics = TorchPolicy(tiny_llama, settings().policy).step([sides], preference_loss(algorithm)).metrics
        assert metrics["loss"] == pytest.approx(metrics["preference_loss"] + weight * metrics["sft_loss"], rel=1e-5)


def test_a_source_goes_on_after_the_last_step_taken_and_keeps_pairs_together(tiny_llama, pairs, tmp_path):
    chosen = settings(loss="simpo", epochs=2, policy={"microbatch_tokens": 5})
    policy = TorchPolicy(tiny_llama, chosen.policy)

    def steps_of(source):
        found = []
        while (step := source.next()) is not None:
            assert all(len(batch) % 2 == 0 for batch in step.microbatches)
            assert step.metrics["num_pairs"] == sum(len(batch) for batch in step.microbatches) / 2
            found.append([one.token_ids.tolist() for batch in step.microbatches for one in batch])
            source.stepped(len(found))
        return found

    whole = steps_of(open_source(pairs, chosen, policy, tmp_path))
    assert [len(step) for step in whole] == [4, 4, 2, 4, 4, 2]
    first = open_source(pairs, chosen, policy, tmp_path)
    for version in range(4):
        first.next()
        first.stepped(version)
    second = open_source(pairs, chosen, policy, tmp_path)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert steps_of(second) == whole[4:]
    assert not (tmp_path / "ref").exists()  # simpo has no reference


def test_kto_asks_each_prompt_with_the_answers_of_the_next_other_prompt(pairs):
    others = other_answers(pairs, max_length=8)
    # pairs 0 and 1 have one prompt, 3 and 4 another; the last is followed by the first
    assert [[one.token_ids.tolist() for one in unit] for unit in others] == [
        [[9, 4, 8, 40, 2], [9, 4, 8, 31, 32, 33, 2]],
        [[9, 4, 8, 40, 2], [9, 4, 8, 31, 32, 33, 2]],
        [[9, 4, 7, 7, 31, 32, 2], [9, 4, 7, 7, 90, 2]],
        [[9, 3, 31, 2], [9, 3, 77, 78, 2]],
        [[9, 3, 31, 2], [9, 3, 77, 78, 2]],
    ]
    cut = other_answers(pairs, max_length=5)
    assert [len(one.token_ids) for unit in cut for one in unit] == [5, 5, 5, 5, 5, 5, 4, 5, 4, 5]
    assert cut[0][1].train_mask.tolist() == [False, False, False, True, True]
    with pytest.raises(ConfigError, match="all pairs have the same one"):
        other_answers(pairs[:2], max_length=8)


@pytest.mark.parametrize("sign", [1, -1])
def test_ktos_baseline_is_the_mean_log_ratio_of_answers_to_other_prompts_and_never_below_0(tiny_llama, pairs, tmp_path, sign):
    chosen = settings(loss="kto", batch_size=5)
    policy = TorchPolicy(tiny_llama, chosen.policy)
    source = open_source(pairs, chosen, policy, tmp_path)
    step = source.next()
    assert step is not None
    assert step.metrics["baseline"] == source.baseline == pytest.approx(0.0, abs=1e-5)
    others = [one for unit in other_answers(pairs, max_length=40) for one in unit]
    before = sum(float(one.sum()) for one in policy.logprobs(others))
    policy.step([others], lambda logprobs, columns: Loss(-sign * logprobs.sum() / columns.num_tokens))
    drift = (sum(float(one.sum()) for one in policy.logprobs(others)) - before) / len(others)
    assert sign * drift > 0.01
    source.next()
    assert source.baseline == pytest.approx(max(0.0, drift), abs=1e-4)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


def load(path, renderer, *, train_on="all", **limits):
    """The pairs of a file and what was dropped."""
    data = PreferenceData.model_validate({"train": str(path), "train_on": train_on})
    samples = read_samples(path, pair_reader(data, renderer), Limits(**{"max_length": 1000, **limits}))
    return samples.units, samples.dropped, samples.num_cut


def test_pairs_with_a_side_that_is_too_long_are_dropped_and_counted(tmp_path, renderer):
    asked = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    path = write(tmp_path / "pairs.jsonl", ROW, {**ROW, "rejected": "5" * 50}, {**ROW, "chosen": "4" * 50})
    length = len(renderer.render_ids(asked))
    pairs, dropped, _ = load(path, renderer, max_length=length)
    assert (len(pairs), dropped) == (1, {"too_long": 2})
    assert [one.origin for one in pairs[0]] == [f"{path}:1"] * 2


def test_a_cut_pair_needs_something_to_prefer(tmp_path, renderer):
    rows = [{**ROW, "chosen": "7 a b c d"}, {**ROW, "chosen": "5 a b c d", "rejected": "5 a b c e"}]
    path = write(tmp_path / "pairs.jsonl", ROW, *rows)
    length = len(renderer.render_ids([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]))
    pairs, dropped, num_cut = load(path, renderer, max_length=length, over_length="cut")
    assert (len(pairs), dropped, num_cut) == (2, {"too_long": 1}, 1)
    assert [len(one.token_ids) for one in pairs[1]] == [length, length]


def test_a_row_that_is_no_pair_is_a_data_error_with_path_and_line(tmp_path, renderer):
    path = write(tmp_path / "pairs.jsonl", ROW, {**ROW, "rejected": "4"})
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: chosen and rejected are equal") as caught:
        load(path, renderer)
    assert (caught.value.path, caught.value.line) == (path, 2)


def test_a_side_whose_earlier_answers_are_written_anew_takes_its_pair_with_it(tmp_path):
    renderer = load_renderer(write_qwen3(tmp_path / "qwen3"), name="qwen3")
    talk = [{"role": "assistant", "content": "b", "reasoning_content": "r"}, {"role": "user", "content": "c"}]
    end = [{"role": "assistant", "content": "d"}]
    two = [{"rank": 0, "completion": [*talk, *end]}, {"rank": 1, "completion": end}]
    path = write(tmp_path / "pairs.jsonl", {"context": [{"role": "user", "content": "a"}], "completions": two}, ROW)
    pairs, dropped, _ = load(path, renderer)
    assert (len(pairs), dropped) == (1, {"history_rewritten": 1})
    pairs, dropped, _ = load(path, renderer, train_on="final")
    assert (len(pairs), dropped) == (2, {})
    assert [one.num_trained for one in pairs[0]] == [8, 8]  # <think> 2 lines </think> 2 lines d <|im_end|>


def drift(settings):
    """A user's loss that needs the reference."""

    def loss(logprobs, columns):
        return Loss(settings.beta * (logprobs - columns.ref_logprobs).sum(), {"reference": float(columns.ref_logprobs.sum())})

    return loss


def test_a_loss_of_ones_own_gets_the_references_logprobs(tiny_llama, pairs, tmp_path):
    chosen = settings(loss="tests.trainers.test_dpo:drift", batch_size=5)
    policy = TorchPolicy(tiny_llama, chosen.policy)
    step = open_source(pairs, chosen, policy, tmp_path).next()
    assert step is not None
    metrics = policy.step(step.microbatches, preference_loss(chosen.algorithm)).metrics
    assert metrics["reference"] < -10
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-4)
