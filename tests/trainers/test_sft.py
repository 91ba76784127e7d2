import json
from dataclasses import replace

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.settings import SFTAlgorithm, SFTSettings
from gym_bridge.trainers.sft import SFTSource, load_samples, sft_loss


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


def steps_of(source):
    """The sequences of every step that is left, by their second token."""
    found = []
    while (step := source.next()) is not None:
        found.append([int(one.token_ids[1]) for batch in step.microbatches for one in batch])
        source.stepped(len(found))
    return found


def test_an_epoch_sees_every_row_once_and_ends_with_what_is_left(samples):
    source = SFTSource(samples, settings())
    steps = steps_of(source)
    assert [len(step) for step in steps] == [2, 2, 1]
    assert sorted(row for step in steps for row in step) == [10, 11, 12, 13, 14]
    assert (source.steps_per_epoch, source.total_steps) == (3, 3)


def test_each_epoch_has_an_order_of_its_own_and_the_seed_tells_which(samples):
    steps = steps_of(SFTSource(samples, settings(batch_size=1, epochs=3)))
    epochs = [tuple(row for step in steps[at : at + 5] for row in step) for at in (0, 5, 10)]
    assert all(sorted(epoch) == [10, 11, 12, 13, 14] for epoch in epochs)
    assert len(set(epochs)) == 3
    assert steps_of(SFTSource(samples, settings(batch_size=1, epochs=3))) == steps
    assert steps_of(SFTSource(samples, settings(batch_size=1, epochs=3, seed=1))) != steps


def test_a_source_goes_on_after_the_last_step_taken(samples):
    whole = steps_of(SFTSource(samples, settings(epochs=2)))
    first = SFTSource(samples, settings(epochs=2))
    for version in range(4):
        first.next()
        first.stepped(version)
    first.next()  # asked for, never taken
    second = SFTSource(samples, settings(epochs=2))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert steps_of(second) == whole[4:]


def test_a_step_tells_its_epoch_and_its_rows(samples):
    source = SFTSource(samples, settings(epochs=2))
    told = []
    while (step := source.next()) is not None:
        told.append((step.metrics["epoch"], step.metrics["num_sequences"]))
        source.stepped(len(told))
    assert told == [
        (0, 2),
        (pytest.approx(1 / 3), 2),
        (pytest.approx(2 / 3), 1),
        (1, 2),
        (pytest.approx(4 / 3), 2),
        (pytest.approx(5 / 3), 1),
    ]


def test_a_batch_is_cut_into_microbatches(samples):
    step = SFTSource(samples, settings(batch_size=5, microbatch_tokens=6)).next()
    assert step is not None
    assert [len(batch) for batch in step.microbatches] == [2, 2, 1]  # 3 + 2 packed tokens, a third would make 7


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


def test_rows_that_are_too_long_are_dropped_and_counted(tmp_path, renderer):
    length = len(renderer.render_ids(chat("4")["messages"]))
    path = write(tmp_path / "rows.jsonl", chat("4"), chat("4" * 100), chat("5"), chat("6" * 50))
    samples, dropped = load_samples(path, renderer, max_length=length)
    assert [len(one.token_ids) for one in samples] == [length, length]
    assert dropped == {"too_long": 2}


def test_a_file_of_rows_that_are_all_too_long_is_refused(tmp_path, renderer):
    with pytest.raises(ConfigError, match=r"rows\.jsonl: every row has more than data\.max_length=5 tokens; raise it"):
        load_samples(write(tmp_path / "rows.jsonl", chat("4")), renderer, max_length=5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant message to train on"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}]}, "tool call .* is not of the form"),
        ({"prompt": "a"}, "expected the columns 'messages' and 'tools', found prompt"),
        ("{oops\n", "no JSON"),
    ],
)
def test_a_bad_row_is_a_data_error_with_path_and_line(tmp_path, renderer, row, message):
    path = write(tmp_path / "rows.jsonl", chat("4"), "\n", row)
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: {message}") as caught:
        load_samples(path, renderer, max_length=1000)
    assert (caught.value.path, caught.value.line) == (path, 3)


def test_rows_have_the_weights_of_the_named_column(tmp_path, renderer):
    rows = [{**chat("4"), "gym_bridge": {"reward": reward}} for reward in (0.25, 1.0)]
    path = write(tmp_path / "rows.jsonl", *rows, chat("5"))
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the row's weight 'gym_bridge\.reward' is None"):
        load_samples(path, renderer, max_length=100, weight="gym_bridge.reward")
    samples, _ = load_samples(write(path, *rows), renderer, max_length=100, weight="gym_bridge.reward")
    assert [one.weight for one in samples] == [0.25, 1.0]


def test_two_rows_are_learnt_by_heart(tmp_path, renderer, tiny_llama):
    rows = [
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "The answer is 4."}]},
        {"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "It is 5"}]},
    ]
    samples, _ = load_samples(write(tmp_path / "rows.jsonl", *rows), renderer, max_length=200)
    chosen = settings(epochs=40)
    policy = TorchPolicy(tiny_llama, chosen.policy.model_copy(update={"compute_dtype": "float32", "lr": 1e-2}))
    source = SFTSource(samples, chosen)
    losses = []
    while (step := source.next()) is not None:
        losses.append(policy.step(step.microbatches, sft_loss(chosen.algorithm)).metrics["loss"])
        source.stepped(policy.version)
    assert len(losses) == 40
    assert losses[0] > 3
    assert losses[-1] < 0.1
