import pytest

from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import PolicySettings
from gym_bridge.trainers.validation import Validation


class Asked:
    """A policy that tells what it was asked to evaluate: its loss is the number of sequences, `tokens` that of their tokens."""

    def evaluate(self, microbatches, loss_fn):
        self.microbatches, self.loss_fn = microbatches, loss_fn
        rows = [one for part in microbatches for one in part]
        return {"tokens": float(sum(len(one.token_ids) for one in rows)), "loss": float(len(rows))}


@pytest.fixture
def units(training_sequence):
    return [tuple(training_sequence("ppTT", [5, number, side, 2]) for side in (7, 8)) for number in range(10, 15)]


def test_each_set_is_named_its_loss_stands_first_and_no_pair_is_parted(units):
    policy = Asked()
    validation = Validation({"a": units, "b": units[:1]}, lambda *_: None, microbatch_tokens=8, share_prefixes=False)
    assert list(validation.run(policy).items()) == [
        ("validation/a/loss", 10.0),
        ("validation/a/tokens", 40.0),
        ("validation/b/loss", 2.0),
        ("validation/b/tokens", 8.0),
    ]
    Validation({"a": units}, lambda *_: None, microbatch_tokens=8, share_prefixes=False).run(policy)
    assert [len(part) for part in policy.microbatches] == [2, 2, 2, 2, 2]
    assert all(part[0].token_ids[1] == part[1].token_ids[1] for part in policy.microbatches)


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_the_loss_is_a_mean_over_the_whole_set_however_it_is_cut_and_the_policy_stays(tiny_llama, units, share_prefixes):
    from gym_bridge.policy.torch_policy import TorchPolicy

    policy = TorchPolicy(tiny_llama, PolicySettings(compute_dtype="float32"))
    before = {name: tensor.clone() for name, tensor in policy.weights()}

    def loss(logprobs, columns):
        return Loss(-logprobs.sum() / columns.num_tokens, {"rows": float(len(columns.sequence.unique())) / columns.num_sequences})

    expected = -sum(one.sum().item() for one in policy.logprobs([side for unit in units for side in unit])) / 20
    for microbatch_tokens in (8, 1024):
        sets = {"held_out": units}
        found = Validation(sets, loss, microbatch_tokens=microbatch_tokens, share_prefixes=share_prefixes).run(policy)
        assert found["validation/held_out/loss"] == pytest.approx(expected, abs=1e-5)
        assert found["validation/held_out/rows"] == pytest.approx(1.0)
    assert policy.version == 0
    assert all((tensor == before[name]).all() for name, tensor in policy.weights())
    assert not any(param.grad.any() for param in policy.module.parameters())
