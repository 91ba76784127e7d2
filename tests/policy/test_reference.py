import shutil

import numpy as np
import pytest
import torch

from gym_bridge.errors import PolicyError
from gym_bridge.policy.reference import with_ref_logprobs
from tests.policy.stage import mean_nll, open_policy, weighted


@pytest.fixture
def sequences(training_sequence):
    return [training_sequence("ppTT", [5, 6, 7, 8]), training_sequence("pTpT", [5, 6, 7, 8])]


class Counted:
    """A reference whose log-probs are minus the trained tokens; it counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, sequences):
        self.calls += 1
        return [-torch.from_numpy(one.token_ids[one.train_mask]).float() for one in sequences]


def test_logprobs_stand_at_the_trained_tokens_and_are_computed_once(sequences, tmp_path):
    compute = Counted()
    for _ in range(2):
        first, second = with_ref_logprobs(sequences, directory=tmp_path / "cache", model="a", compute=compute)
        np.testing.assert_array_equal(first.ref_logprobs, np.float32([np.nan, np.nan, -7, -8]))
        np.testing.assert_array_equal(second.ref_logprobs, np.float32([np.nan, -6, np.nan, -8]))
        assert first.token_ids is sequences[0].token_ids
    assert compute.calls == 1


def test_another_model_other_tokens_and_other_masks_are_computed_anew(sequences, training_sequence, tmp_path):
    compute = Counted()
    for model, given in [
        ("a", sequences),
        ("b", sequences),
        ("a", sequences[::-1]),
        ("a", [sequences[0], training_sequence("pTpT", [5, 6, 7, 9])]),
        ("a", [sequences[0], training_sequence("ppTT", [5, 6, 7, 8])]),
    ]:
        with_ref_logprobs(given, directory=tmp_path, model=model, compute=compute)
    assert compute.calls == 5


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_torn_file_is_computed_again(sequences, tmp_path, damage):
    compute = Counted()
    with_ref_logprobs(sequences, directory=tmp_path, model="a", compute=compute)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4] if damage is None else damage)
    again, _ = with_ref_logprobs(sequences, directory=tmp_path, model="a", compute=compute)
    assert (compute.calls, again.ref_logprobs[-1]) == (2, -8)
    with_ref_logprobs(sequences, directory=tmp_path, model="a", compute=compute)
    assert compute.calls == 2


def test_a_disk_that_refuses_is_a_policy_error(sequences, tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(PolicyError, match=r"cannot write .*: (Not a directory|File exists)"):
        with_ref_logprobs(sequences, directory=tmp_path / "file", model="a", compute=Counted())


def test_the_reference_of_a_whole_model_is_the_first_one_read_again(tiny_llama, group, tmp_path):
    first = open_policy(tiny_llama).logprobs(group)
    policy = open_policy(tiny_llama, schedule="linear", total_steps=9)
    assert same_tensors(policy.reference_logprobs(group), first)
    policy.step([group], mean_nll)
    policy.save(tmp_path / "step", source_state={})
    resumed = open_policy(tiny_llama)
    resumed.load(tmp_path / "step")
    for one in (policy, resumed):
        assert not same_tensors(one.logprobs(group), first)
        assert same_tensors(one.reference_logprobs(group), first)


def test_a_checkpoint_is_never_its_own_reference(tiny_llama, group, tmp_path):
    policy = open_policy(tiny_llama)
    policy.step([group], mean_nll)
    policy.save(tmp_path / "step", source_state={})
    resumed = open_policy(tmp_path / "step" / "model")
    resumed.load(tmp_path / "step")
    with pytest.raises(PolicyError, match="is a checkpoint, no reference; open the policy from the run's first model, then load"):
        resumed.reference_logprobs(group)
    another_run = open_policy(tmp_path / "step" / "model")
    assert same_tensors(another_run.reference_logprobs(group), policy.logprobs(group))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_model_is_read_once_and_stays_as_it_was(tiny_llama, group, tmp_path, dtype):
    shutil.copytree(tiny_llama, tmp_path / "first")
    first = open_policy(tiny_llama, compute_dtype=dtype).logprobs(group)
    policy = open_policy(tmp_path / "first", compute_dtype=dtype)
    policy.step([group], mean_nll)
    assert same_tensors(policy.reference_logprobs(group), first)
    shutil.rmtree(tmp_path / "first")  # as an old checkpoint of another run may be
    policy.step([group], mean_nll)
    assert same_tensors(policy.reference_logprobs(group), first)
    policy.save(tmp_path / "step", source_state={})
    policy.step([group], mean_nll)
    policy.load(tmp_path / "step")
    assert policy.version == 2
    assert same_tensors(policy.reference_logprobs(group), first)
    assert not same_tensors(policy.logprobs(group), first)


def test_with_adapters_no_second_model_is_read(tiny_llama, group, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "base")
    policy = open_policy(tmp_path / "base", lora={"rank": 4, "alpha": 8.0}, lr=1e-2)
    shutil.rmtree(tmp_path / "base")
    for _ in range(2):
        policy.step([group], mean_nll)
        assert same_tensors(policy.reference_logprobs(group), open_policy(tiny_llama).logprobs(group))


def test_the_reference_of_a_scalar_head_is_scalar_too(tiny_llama, group):
    for head in ("scalar", "value"):
        policy = open_policy(tiny_llama, head=head)
        first = policy.logprobs(group)
        policy.step([group], weighted)
        assert not same_tensors(policy.logprobs(group), first)
        assert same_tensors(policy.reference_logprobs(group), first)


def same_tensors(found, expected):
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
