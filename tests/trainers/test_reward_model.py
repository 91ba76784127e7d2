import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from gym_bridge.errors import DataError, PolicyError
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.settings import RewardModelAlgorithm, RewardModelData, RewardModelSettings
from gym_bridge.tokens.sample_files import Limits, read_samples
from gym_bridge.trainers.epochs import Dataset
from gym_bridge.trainers.reward_model import RewardModelSource, read_at_the_end, reward_model_loss, scored_pair_reader
from tests.policy.test_torch_policy import gradients_of_step, same, weights_of

PAD = 0


def settings(**algorithm):
    return RewardModelSettings.model_validate(
        {
            "data": {"train": "pairs.jsonl"},
            "policy": {"compute_dtype": "float32", "lr": 1e-3},
            "algorithm": {"batch_size": 3, **algorithm},
        }
    )


def scalar_policy(directory, chosen=None):
    return TorchPolicy(directory, (chosen or settings()).policy, head="scalar")


@pytest.fixture
def pairs(training_sequence):
    """Three pairs over two prompts with margins; one side ends with the padding token."""
    return [
        (replace(training_sequence("pppTT", [9, 4, 8, 31, 2]), margin=0.5), training_sequence("pppTTT", [9, 4, 8, 77, 78, 2])),
        (training_sequence("pppTpTT", [9, 4, 8, 31, 5, 32, PAD]), training_sequence("pppTT", [9, 4, 8, 60, 2])),
        (replace(training_sequence("ppTTT", [9, 3, 31, 32, 2]), margin=1.0), training_sequence("ppTT", [9, 3, 90, 2])),
    ]


def step_of(pairs, chosen=None):
    step = RewardModelSource(Dataset.of(pairs), chosen or settings(), pad_id=PAD).next()
    assert step is not None
    return [one for batch in step.microbatches for one in batch]


def scores_of(module, sequences):
    """What transformers' own forward pass gives each whole sequence."""
    return torch.stack([module(input_ids=torch.from_numpy(one.token_ids).long()[None]).logits[0, 0] for one in sequences])


def trained_start(policy, directory):
    """The policy's start, saved: a head of random weights is not in the tiny model's directory."""
    policy.save(directory, source_state={})
    return AutoModelForSequenceClassification.from_pretrained(directory / "model", dtype=torch.float32).eval()


@pytest.mark.parametrize("cut", [[3], [1, 1, 1], [2, 1]])
def test_loss_and_every_gradient_equal_transformers_own_however_the_step_is_cut(tiny_model, pairs, tmp_path, cut):
    sides = step_of(pairs)
    policy = scalar_policy(tiny_model)
    module = trained_start(policy, tmp_path / "start")
    scores = scores_of(module, sides)
    margins = torch.tensor([one.margin for one in sides[0::2]])
    assert sorted(margins.tolist()) == [0.0, 0.5, 1.0]
    gaps, sums = scores[0::2] - scores[1::2], scores[0::2] + scores[1::2]
    loss = (-torch.log(torch.sigmoid(gaps - margins)) + 0.01 * sums**2).mean()
    loss.backward()
    rest = list(sides)
    microbatches = [[rest.pop(0) for _ in range(2 * size)] for size in cut]
    found, result = gradients_of_step(policy, microbatches, reward_model_loss(RewardModelAlgorithm(centring=0.01)))
    assert result.metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    expected = {name: param.grad for name, param in module.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    assert result.metrics["accuracy"] == int((gaps > 0).sum()) / 3
    assert result.metrics["margin"] == pytest.approx(gaps.mean().item(), abs=1e-5)
    assert result.metrics["reward_chosen"] == pytest.approx(scores[0::2].mean().item(), abs=1e-5)
    assert result.metrics["reward_rejected"] == pytest.approx(scores[1::2].mean().item(), abs=1e-5)
    assert "entropy" not in result.metrics


def test_a_score_is_read_at_the_last_token_that_is_no_padding(pairs):
    assert [one.train_mask.tolist().index(True) for one in step_of(pairs)] == [4, 3, 4, 5, 5, 4]
    assert [one.num_trained for one in step_of(pairs)] == [1] * 6
    assert all(one.train_mask[-1] for pair in read_at_the_end(pairs, None) for one in pair)


def test_preferences_are_learnt_and_a_saved_model_scores_as_the_policy_does(tiny_model, pairs, tmp_path):
    chosen = settings(epochs=12)
    policy, source = scalar_policy(tiny_model, chosen), RewardModelSource(Dataset.of(pairs), chosen, pad_id=PAD)
    seen = []
    while (step := source.next()) is not None:
        assert step.metrics["num_pairs"] == 3
        seen.append(policy.step(step.microbatches, reward_model_loss(chosen.algorithm)).metrics)
        source.stepped(policy.version)
    assert seen[-1]["accuracy"] == 1.0
    assert seen[-1]["loss"] < 0.5 < seen[0]["loss"]
    sides = step_of(pairs)
    with torch.no_grad():
        expected = scores_of(trained_start(policy, tmp_path / "end"), sides)
    torch.testing.assert_close(torch.cat(policy.logprobs(sides)), expected, atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "end" / "model" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")


def test_saved_and_loaded_it_goes_on_bit_for_bit(tiny_model, pairs, tmp_path):
    whole, sides, loss_fn = scalar_policy(tiny_model), step_of(pairs), reward_model_loss(RewardModelAlgorithm())
    whole.step([sides], loss_fn)
    whole.save(tmp_path / "step", source_state={})
    resumed = scalar_policy(tiny_model)
    resumed.load(tmp_path / "step")
    back = scalar_policy(tiny_model)
    back.step([sides], loss_fn)
    back.load(tmp_path / "step")
    for policy in (whole, resumed, back):
        policy.step([sides], loss_fn)
    assert same(weights_of(resumed), weights_of(whole))
    assert same(weights_of(back), weights_of(whole))


def test_a_new_head_is_the_same_each_time(tiny_llama):
    first, second = (weights_of(scalar_policy(tiny_llama))["score.weight"] for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (1, 32)
    assert 0.01 < float(first.std()) < 0.04  # the family's initializer_range is 0.02


def test_a_reward_model_is_no_language_model(tiny_llama, tmp_path):
    policy = scalar_policy(tiny_llama)
    policy.save(tmp_path / "rm", source_state={})
    with pytest.raises(PolicyError, match=r"no weights for lm_head\.weight; expected a language model, found a"):
        TorchPolicy(tmp_path / "rm" / "model", settings().policy)


def test_margins_come_from_the_named_column(tmp_path, renderer):
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ({**row, "rating": {"gap": 2}}, row)))

    def load(margin=None):
        data = RewardModelData.model_validate({"train": str(path), "margin": margin})
        return read_samples(path, scored_pair_reader(data, renderer), Limits(max_length=200)).units

    assert [chosen.margin for chosen, _ in load()] == [0.0, 0.0]
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: the row's margin 'rating\.gap' is None; expected a number of at least 0"):
        load("rating.gap")
    path.write_text(json.dumps({**row, "rating": {"gap": 2}}) + "\n")
    ((chosen, rejected),) = load("rating.gap")
    assert (chosen.margin, rejected.margin) == (2.0, 0.0)
