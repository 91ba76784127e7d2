import json
from dataclasses import replace

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import SFTAlgorithm, SFTData, SFTSettings
from gym_bridge.tokens.sample_files import Limits, read_samples
from gym_bridge.trainers.epochs import Dataset
from gym_bridge.trainers.sft import SFTSource, sft_loss, sft_reader

PLAIN = 3


def settings(*, batch_size=2, epochs=1, seed=0, microbatch_tokens=1024):
    return SFTSettings.model_validate(
        {
            "data": {"train": "rows.jsonl"},
            "policy": {"microbatch_tokens": microbatch_tokens},
            "algorithm": {"batch_size": batch_size, "epochs": epochs},
            "trainer": {"seed": seed},
        }
    )


@pytest.fixture
def samples(training_sequence):
    """Five sequences; the second token tells them apart."""
    return [training_sequence("pTT", [9, number, 2]) for number in range(10, 15)]


def test_a_batch_is_cut_into_microbatches(samples):
    step = SFTSource(Dataset.of([(one,) for one in samples]), settings(batch_size=5, microbatch_tokens=6)).next()
    assert step is not None
    assert sorted(len(batch) for batch in step.microbatches) == [1, 2, 2]  # 3 + 2 packed tokens, a third would make 7


def test_the_mean_is_over_tokens_or_over_rows_and_weights_multiply(tiny_llama, training_sequence):
    """Two rows of 1 and 3 trained tokens, of weights 1 and 2."""
    rows = [training_sequence("pT", [9, 4]), replace(training_sequence("pTTT", [8, 5, 6, 7]), weight=2.0)]
    policy = settings().policy.model_copy(update={"compute_dtype": "float32"})
    first, second = (float(-one.sum()) for one in TorchPolicy(tiny_llama, policy).logprobs(rows))
    for mean_over, expected in (("tokens", (first + 2 * second) / 4), ("rows", (first + 2 * second / 3) / 2)):
        for microbatches in ([rows], [rows[:1], rows[1:]]):
            loss_fn = sft_loss(SFTAlgorithm.model_validate({"mean_over": mean_over}))
            result = TorchPolicy(tiny_llama, policy).step(microbatches, loss_fn)
            assert result.metrics["loss"] == pytest.approx(expected, rel=1e-5)


def chat(answer):
    return {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer}]}


def write(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def reader_of(renderer, **data):
    return sft_reader(SFTData.model_validate({"train": "rows.jsonl", **data}), renderer)


def load(path, renderer, *, max_length=1000, **data):
    """The sequences of a file and what was dropped."""
    samples = read_samples(path, reader_of(renderer, **data), Limits(max_length=max_length))
    return [one for unit in samples.units for one in unit], samples.dropped


def test_rows_of_all_kinds_may_stand_in_one_file(tmp_path, renderer):
    item = {"role": "assistant", "prompt_token_ids": [5, 6], "generation_token_ids": [7, 2], "generation_log_probs": [-1.0, -0.5]}
    rollout = {"responses_create_params": {"input": "2+2?"}, "response": {"output": [item]}, "reward": 1.0}
    path = write(tmp_path / "rows.jsonl", chat("4"), {"input": "2+2?", "output": "5"}, rollout)
    samples, dropped = load(path, renderer)
    assert [one.origin for one in samples] == [f"{path}:1", f"{path}:2", f"{path}:3"]
    assert [one.token_ids.tolist() for one in samples[:2]] == [renderer.render_ids(chat(one)["messages"]) for one in "45"]
    assert (samples[2].token_ids.tolist(), samples[2].train_mask.tolist()) == ([5, 6, 7, 2], [False, False, True, True])
    assert dropped == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant message to train on"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}]}, "tool call .* is not of the form"),
        ({"prompt": "a"}, r"expected 'messages' \(and 'tools'\), 'input' and 'output', or rollouts with token ids, found prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "expected 'messages' .*, found chosen, prompt, rejected"),
        ("{oops\n", "no JSON"),
        ("{}\n", "expected 'messages' .*, found no columns"),
    ],
)
def test_a_bad_row_is_a_data_error_with_path_and_line(tmp_path, renderer, row, message):
    path = write(tmp_path / "rows.jsonl", chat("4"), "\n", row)
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: {message}") as caught:
        load(path, renderer)
    assert (caught.value.path, caught.value.line) == (path, 3)


def test_rows_have_the_weights_of_the_named_column(tmp_path, renderer):
    rows = [{**chat("4"), "gym_bridge": {"reward": reward}} for reward in (0.25, 1.0)]
    path = write(tmp_path / "rows.jsonl", *rows, chat("5"))
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the row's weight 'gym_bridge\.reward' is None"):
        load(path, renderer, weight="gym_bridge.reward")
    samples, _ = load(write(path, *rows), renderer, weight="gym_bridge.reward")
    assert [one.weight for one in samples] == [0.25, 1.0]


def test_a_reward_is_asked_of_rollouts_only(tmp_path, renderer):
    path = write(tmp_path / "rows.jsonl", chat("4"))
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: data\.min_reward is for rollouts, and this is none; leave it out"):
        load(path, renderer, min_reward=0.5)


def doubled(settings):
    """A user's loss: of the settings, so that a test sees that it got them."""

    def loss(logprobs, columns):
        return Loss(-settings.batch_size * logprobs.sum() / columns.num_tokens, {"mine": 1.0 / len(columns.weights)})

    return loss


def test_a_loss_of_ones_own_is_named_by_a_dotted_path(tiny_llama, training_sequence):
    rows, policy = [training_sequence("pTT", [9, 4, 2])], settings().policy.model_copy(update={"compute_dtype": "float32"})
    usual = TorchPolicy(tiny_llama, policy).step([rows], sft_loss(SFTAlgorithm())).metrics["loss"]
    algorithm = SFTAlgorithm(loss="tests.trainers.test_sft:doubled", batch_size=3)
    metrics = TorchPolicy(tiny_llama, policy).step([rows], sft_loss(algorithm)).metrics
    assert metrics["loss"] == pytest.approx(3 * usual)
    assert metrics["mine"] == 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.trainers.test_sft:nobody", "cannot load 'tests.trainers.test_sft:nobody'"),
        ("tests.trainers.test_sft:PLAIN", "algorithm.loss='tests.trainers.test_sft:PLAIN' is int, no function of the settings"),
    ],
)
def test_a_loss_that_is_none_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        sft_loss(SFTAlgorithm(loss=name))


def test_two_rows_are_learnt_by_heart(tmp_path, renderer, tiny_llama):
    rows = [
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "The answer is 4."}]},
        {"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "It is 5"}]},
    ]
    samples, _ = load(write(tmp_path / "rows.jsonl", *rows), renderer)
    chosen = settings(epochs=40)
    policy = TorchPolicy(tiny_llama, chosen.policy.model_copy(update={"compute_dtype": "float32", "lr": 1e-2}))
    source = SFTSource(Dataset.of([(one,) for one in samples]), chosen)
    losses = []
    while (step := source.next()) is not None:
        losses.append(policy.step(step.microbatches, sft_loss(chosen.algorithm)).metrics["loss"])
        source.stepped(policy.version)
    assert len(losses) == 40
    assert losses[0] > 3
    assert losses[-1] < 0.1
