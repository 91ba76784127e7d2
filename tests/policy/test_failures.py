import math
import pickle
from dataclasses import replace

import pytest
import torch

from gym_bridge.errors import NonFiniteLossError, PolicyError
from gym_bridge.schemas.seams import Loss
from tests.policy.stage import mean_nll, open_policy, same, weights_of


@pytest.fixture
def named(group):
    """The group, each with its row."""
    return [replace(one, origin=f"sft.jsonl:{row}") for row, one in enumerate(group, start=1)]


def nan_for_two(logprobs, columns):
    """No number for a microbatch of two sequences."""
    return Loss(logprobs.sum() * (math.nan if int(columns.sequence.max()) == 1 else 1.0))


def endless_slope_for_two(logprobs, columns):
    """0 with a slope of infinity for a microbatch of two sequences."""
    apart = (logprobs - logprobs.detach()).sum()
    return Loss(torch.sqrt(apart) if int(columns.sequence.max()) == 1 else apart)


def memory_eater(logprobs, columns):
    """Asks the CPU's allocator for more than any machine has."""
    return Loss(logprobs.sum() + torch.empty(2**50).sum())


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (
            nan_for_two,
            "the loss is nan at step 1, from 2 sequences (sft.jsonl:2, sft.jsonl:3); lower policy.lr or look at these rows",
        ),
        (endless_slope_for_two, "the gradient's norm is nan at step 1, from 2 sequences (sft.jsonl:2, sft.jsonl:3); lower"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_error_for_what_is_no_number_holds_the_microbatch_it_comes_from(tiny_llama, named, loss_fn, message, dtype):
    policy = open_policy(tiny_llama, compute_dtype=dtype)
    before = weights_of(policy)
    with pytest.raises(NonFiniteLossError) as told:
        policy.step([named[:1], named[1:3], named[3:]], loss_fn)
    assert str(told.value).startswith(message)
    assert [one.origin for one in told.value.sequences] == ["sft.jsonl:2", "sft.jsonl:3"]
    assert same(weights_of(policy), before)
    assert policy.version == 0


def test_an_evaluation_says_which_one_it_was(tiny_llama, named):
    policy = open_policy(tiny_llama)
    with pytest.raises(NonFiniteLossError, match="the loss is nan in the evaluation after step 0, from 2 sequences"):
        policy.evaluate([named[:2]], nan_for_two)


def test_five_rows_are_named_once_each_and_the_others_counted(tiny_llama, named):
    rows = [replace(named[0], origin=f"sft.jsonl:{row // 2}") for row in range(14)]
    with pytest.raises(NonFiniteLossError, match=r"14 sequences \(sft.jsonl:0, .*, sft.jsonl:4 and 2 more\); lower"):
        open_policy(tiny_llama).step([rows], lambda logprobs, columns: Loss(logprobs.sum() * math.inf))


def test_the_error_crosses_processes_with_its_sequences(named):
    error = pickle.loads(pickle.dumps(NonFiniteLossError("the loss is nan", sequences=named)))
    assert (str(error), [one.origin for one in error.sequences]) == ("the loss is nan", [f"sft.jsonl:{row}" for row in range(1, 5)])


def test_out_of_memory_says_how_large_the_microbatch_was_and_what_to_lower(tiny_llama, named):
    policy = open_policy(tiny_llama, microbatch_tokens=512)
    before = weights_of(policy)
    with pytest.raises(PolicyError) as told:
        policy.step([named[:1], named[1:]], memory_eater)
    assert str(told.value) == (
        "out of memory on cpu at 8 packed tokens, 1 sequences, the longest of 8 tokens; "
        "lower policy.microbatch_tokens or data.max_length, or set policy.activation_checkpointing=true"
    )
    assert same(weights_of(policy), before)
    policy.step([named], mean_nll)
    assert policy.version == 1


def test_a_sequence_longer_than_a_microbatch_leaves_only_its_own_length_to_lower(tiny_llama, named):
    policy = open_policy(tiny_llama, microbatch_tokens=8, activation_checkpointing=True)
    with pytest.raises(PolicyError, match=r"at 8 packed tokens, 1 sequences, the longest of 8 tokens; lower data.max_length$"):
        policy.evaluate([named[:1]], memory_eater)


def test_moments_without_memory_say_which_optimizer_takes_less(tiny_llama, monkeypatch):
    def too_many(masters, settings):
        return torch.empty(2**50)

    monkeypatch.setattr("gym_bridge.policy.optimizers.build_optimizer", too_many)
    message = "out of memory on cpu for the weights, gradients and moments of adamw_fused; set policy.optimizer=adamw_8bit"
    with pytest.raises(PolicyError, match=message):
        open_policy(tiny_llama)


def test_an_update_without_memory_says_the_same(tiny_llama, named, monkeypatch):
    policy = open_policy(tiny_llama)
    monkeypatch.setattr(policy.masters.optimizer, "step", lambda: torch.empty(2**50))
    with pytest.raises(PolicyError, match="for the weights, gradients and moments of adamw_fused; set"):
        policy.step([named], mean_nll)


def test_a_step_that_an_error_ends_halfway_leaves_no_gradient_to_the_next(tiny_llama, named):
    policy, untouched = open_policy(tiny_llama), open_policy(tiny_llama)
    with pytest.raises(PolicyError, match="out of memory"):
        policy.step([named[1:], named[:1]], memory_eater)
    policy.step([named], mean_nll)
    untouched.step([named], mean_nll)
    assert same(weights_of(policy), weights_of(untouched))


def test_other_errors_of_torch_pass_as_they_are(tiny_llama, named):
    def broken(logprobs, columns):
        return Loss(logprobs @ torch.ones(3, 3))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        open_policy(tiny_llama).step([named], broken)
