"""TRL's own losses on the same tensors, and its whole DPO step on the same batch."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.settings import DPOAlgorithm, PolicySettings, RewardModelAlgorithm, SFTAlgorithm
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.trainers.dpo import preference_loss
from gym_bridge.trainers.reward_model import reward_model_loss
from gym_bridge.trainers.sft import sft_loss
from tests.policy.test_torch_policy import gradients_of_step
from tests.trainers.columns_stage import trained_tokens

pytestmark = pytest.mark.slow  # importing trl takes long

ROWS = [
    {"prompt": "What is 2+2? ", "chosen": "The answer is 4.", "rejected": "5"},
    {"prompt": "You are helpful", "chosen": " assistant", "rejected": " AI tool assistant named SmolLM"},
    {"prompt": "system user ", "chosen": "4 4 4", "rejected": "function arguments"},
]


@pytest.fixture(scope="module")
def other_weights(tiny_llama, tmp_path_factory):
    """The reference: the tiny model with other weights."""
    policy = TorchPolicy(tiny_llama, PolicySettings(compute_dtype="float32"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for param in policy.module.parameters():
            param.add_(0.02 * torch.randn(param.shape, generator=generator))
    directory = tmp_path_factory.mktemp("reference") / "step"
    policy.save(directory, source_state={})
    return directory / "model"


@pytest.fixture(scope="module")
def trl_batch(tiny_llama, other_weights, tmp_path_factory):
    """TRL's trainer, and a batch of its own collator: chosen sides first, then the rejected ones."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = "<|endoftext|>"
    config = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        per_device_train_batch_size=3,
        beta=0.3,
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        disable_dropout=True,
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(other_weights, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    return trainer, next(iter(trainer.get_train_dataloader()))


def sequences_of(batch, prefix=""):
    """The rows of a padded batch, without padding."""
    columns = (batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "completion_mask"))
    return [
        TrainingSequence(token_ids=ids[real.bool()].numpy().astype(np.int32), train_mask=trains[real.bool()].numpy().astype(bool))
        for ids, real, trains in zip(*columns, strict=True)
    ]


def paired(first, second):
    """Chosen and rejected sequences, a pair's sides side by side."""
    return [side for pair in zip(first, second, strict=True) for side in pair]


def logprobs_of(directory, sequences):
    return TorchPolicy(directory, PolicySettings(compute_dtype="float32")).logprobs(sequences)


def referred(sequences, reference):
    """The sequences with the reference's log-probs."""
    found = []
    for one, logprobs in zip(sequences, logprobs_of(reference, sequences), strict=True):
        column = np.full(len(one.token_ids), np.nan, dtype=np.float32)
        column[one.train_mask] = logprobs.numpy()
        found.append(replace(one, ref_logprobs=column))
    return found


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"loss_types": ["sigmoid"]}, {"loss": "sigmoid"}),
        ({"loss_types": ["sigmoid_norm"]}, {"loss": "sigmoid", "length_normalised": True}),
        ({"loss_types": ["robust"], "label_smoothing": 0.2}, {"loss": "robust", "label_smoothing": 0.2}),
        ({"loss_types": ["ipo"]}, {"loss": "ipo", "length_normalised": True}),
    ],
)
def test_loss_and_gradients_equal_those_of_trls_dpo_trainer(trl_batch, tiny_llama, other_weights, theirs, ours):
    trainer, batch = trl_batch
    for name, value in {"loss_weights": [1.0], **theirs}.items():
        setattr(trainer, name, value)
    trainer.model.zero_grad()
    expected = trainer.compute_loss(trainer.model.train(), batch)
    expected.backward()
    policy = TorchPolicy(tiny_llama, PolicySettings(compute_dtype="float32"))
    loss_fn = preference_loss(DPOAlgorithm(beta=0.3, **ours))
    sides = sequences_of(batch)
    pairs = paired(sides[:3], sides[3:])
    gradients, result = gradients_of_step(policy, [referred(pairs, other_weights)], loss_fn)
    assert result.metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)
    for name, param in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], param.grad, atol=1e-5, rtol=1e-4)


def test_kto_with_its_baseline_equals_trls_kto_trainer(tiny_llama, other_weights, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    start, reference = other_weights, tiny_llama  # this way round the baseline is above 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = "<|endoftext|>"
    single = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in ROWS
        for side in ("chosen", "rejected")
    ]
    trainer = KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
        args=KTOConfig(output_dir=str(tmp_path), per_device_train_batch_size=6, beta=0.3, report_to=[], bf16=False, use_cpu=True),
        train_dataset=Dataset.from_list(single),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    expected = trainer.compute_loss(trainer.model.train(), batch)
    expected.backward()

    others = sequences_of(batch, "KL_")
    now, before = (logprobs_of(one, others) for one in (start, reference))
    drift = sum(float(new.sum() - old.sum()) for new, old in zip(now, before, strict=True)) / 6
    assert drift > 0.01
    sides, good = sequences_of(batch), batch["label"].bool().tolist()
    chosen, rejected = ([one for one, label in zip(sides, good, strict=True) if label is wanted] for wanted in (True, False))
    loss_fn = preference_loss(DPOAlgorithm(loss="kto", beta=0.3), baseline=lambda: max(0.0, drift))
    policy = TorchPolicy(start, PolicySettings(compute_dtype="float32"))
    gradients, result = gradients_of_step(policy, [referred(paired(chosen, rejected), reference)], loss_fn)
    assert result.metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)
    for name, param in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], param.grad, atol=1e-5, rtol=1e-4)


def random_columns():
    """Log-probs of three pairs, and their columns."""
    lengths = torch.tensor([3, 5, 2, 2, 7, 1])
    generator = torch.Generator().manual_seed(1)
    logprobs, sequence = -2 * torch.rand(20, generator=generator) - 0.05, torch.repeat_interleave(torch.arange(6), lengths)
    columns = trained_tokens(20, sequence=sequence, num_sequences=6)
    logprobs.requires_grad_()
    means = torch.stack([logprobs[sequence == one].mean() for one in range(6)])
    return logprobs, columns, means[0::2], means[1::2]


def assert_same(found, expected, leaf):
    """Equal in value and in the gradient by `leaf`."""
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    (gradient,), (wanted,) = (torch.autograd.grad(one, leaf, retain_graph=True) for one in (found, expected))
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)


def test_supervised_loss_and_gradients_equal_those_of_trls_sft_trainer(tiny_llama, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = "<|endoftext|>"
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32),
        args=SFTConfig(output_dir=str(tmp_path), per_device_train_batch_size=3, report_to=[], bf16=False, use_cpu=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model.train(), dict(batch))
    expected.backward()
    sequences = [
        TrainingSequence(token_ids=ids[real].numpy().astype(np.int32), train_mask=(labels[real] != -100).numpy())
        for ids, labels, real in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True)
    ]
    policy = TorchPolicy(tiny_llama, PolicySettings(compute_dtype="float32"))
    gradients, result = gradients_of_step(policy, [sequences], sft_loss(SFTAlgorithm()))
    assert result.metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)
    for name, param in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], param.grad, atol=1e-5, rtol=1e-4)


def test_conservative_dpo_equals_trls():
    from trl.experimental.cpo import CPOTrainer

    logprobs, columns, _, _ = random_columns()
    sums = torch.stack([logprobs[columns.sequence == one].sum() for one in range(6)])
    here = SimpleNamespace(alpha=0.0, beta=0.3, label_smoothing=0.1, loss_type="sigmoid", accelerator=SimpleNamespace(device="cpu"))
    expected = CPOTrainer.cpo_loss(here, sums[0::2], sums[1::2])[0].mean()  # pyright: ignore[reportArgumentType]
    unreferred = replace(columns, ref_logprobs=torch.zeros(20))
    found = preference_loss(DPOAlgorithm(beta=0.3, label_smoothing=0.1))(logprobs, unreferred)
    assert_same(found.value, expected, logprobs)


def test_simpo_equals_trls():
    from trl.experimental.cpo import CPOTrainer

    logprobs, columns, chosen, rejected = random_columns()
    here = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.7, label_smoothing=0.0, loss_type="simpo", accelerator=SimpleNamespace(device="cpu")
    )
    expected = CPOTrainer.cpo_loss(here, chosen, rejected)[0].mean()  # pyright: ignore[reportArgumentType]
    found = preference_loss(DPOAlgorithm(loss="simpo", beta=2.0, margin=0.7))(logprobs, columns)
    assert_same(found.value, expected, logprobs)


def test_orpos_odds_ratio_equals_trls():
    from trl.experimental.orpo import ORPOTrainer

    logprobs, columns, chosen, rejected = random_columns()
    here = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    expected = -ORPOTrainer.odds_ratio_loss(here, chosen, rejected)[0].mean()  # pyright: ignore[reportArgumentType]
    found = preference_loss(DPOAlgorithm(loss="orpo", beta=0.3))(logprobs, columns)
    assert found.metrics["preference_loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert found.metrics["sft_loss"] == pytest.approx(float(-chosen.mean()), abs=1e-5)
    assert_same(found.value, expected - chosen.mean(), logprobs)


def test_a_reward_models_loss_and_metrics_equal_trls():
    from trl.trainer.reward_trainer import RewardTrainer

    scores = torch.tensor([0.4, -0.2, 1.5, 1.7, -0.6, -0.9], requires_grad=True)
    margins = torch.tensor([0.5, 0.0, 1.0])
    here = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=0.05),
        accelerator=SimpleNamespace(gather=lambda one: one, gather_for_metrics=lambda one: one),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    theirs = torch.cat([scores[0::2], scores[1::2]])[:, None]
    expected = RewardTrainer.compute_loss(
        here,  # pyright: ignore[reportArgumentType]
        lambda **inputs: SimpleNamespace(logits=theirs),
        {"attention_mask": torch.ones(6, 2), "margin": margins},
    )
    _, columns, _, _ = random_columns()
    columns = replace(columns, sequence=torch.arange(6), margins=margins.repeat_interleave(2))
    found = reward_model_loss(RewardModelAlgorithm(centring=0.05))(scores, columns)
    assert_same(found.value, expected, scores)
    for name in ("accuracy", "margin"):
        assert found.metrics[name] == pytest.approx(here._metrics["train"][name][0], abs=1e-5)
