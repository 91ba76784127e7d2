import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gym_bridge.errors import ConfigError
from gym_bridge.policy.activation_checkpointing import PRODUCTS, checkpoint_layers
from gym_bridge.schemas.seams import Loss
from tests.policy.stage import gradients_of_step, open_policy, weighted


def summed(scores, columns):
    return Loss((scores * columns.advantages).sum())


@pytest.mark.parametrize("which", [True, "selective"])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize(("head", "loss_fn"), [("lm", weighted), ("scalar", summed)])
def test_loss_and_gradients_are_those_without(tiny_model, group, head, loss_fn, lora, which):
    kept, found = (
        gradients_of_step(open_policy(tiny_model, head=head, lora=lora, activation_checkpointing=on), [group], loss_fn)
        for on in (False, which)
    )
    assert found[1].metrics["loss"] == kept[1].metrics["loss"]
    assert found[0].keys() == kept[0].keys()
    for name, gradient in kept[0].items():
        torch.testing.assert_close(found[0][name], gradient, atol=1e-6, rtol=0)


def numbers_kept(policy, group):
    """How many numbers a step keeps for its backward pass."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.step([group], weighted)
    return sum(sizes)


def test_activations_are_not_kept(tiny_llama, group):
    kept, few = (numbers_kept(open_policy(tiny_llama, activation_checkpointing=on), group) for on in (False, True))
    assert few < 0.5 * kept


class Products(TorchDispatchMode):
    """Counts matrix products and attention, and the numbers that they give."""

    def __init__(self):
        super().__init__()
        self.count, self.numbers = 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        found = operator(*args, **(kwargs or {}))
        if operator in PRODUCTS:
            self.count += 1
            self.numbers += sum(one.numel() for one in (found if isinstance(found, tuple) else (found,)))
        return found


def test_selective_computes_no_product_again_and_keeps_less_beside_them(tiny_llama, group):
    counts, kept = {}, {}
    for which in (False, True, "selective"):
        policy = open_policy(tiny_llama, activation_checkpointing=which)
        with Products() as forward, torch.no_grad():
            policy.evaluate([group], weighted)
        with Products() as products:
            kept[which] = numbers_kept(policy, group)
        counts[which] = products.count
    assert counts["selective"] == counts[False] < counts[True]
    assert kept["selective"] + forward.numbers < 0.8 * kept[False]


def test_a_cache_still_fills_when_there_is_no_gradient(tiny_llama):
    ids = torch.tensor([[3, 9, 4, 8]])
    modules = [open_policy(tiny_llama, activation_checkpointing=on).module for on in (False, True)]
    with torch.inference_mode():
        first, second = (module(ids, use_cache=True) for module in modules)
    assert torch.equal(first.logits, second.logits)
    assert second.past_key_values.get_seq_length() == 4


def test_a_model_without_layers_to_compute_again_is_refused():
    with pytest.raises(ConfigError, match=r"policy.activation_checkpointing: Linear has no layers"):
        checkpoint_layers(torch.nn.Linear(2, 2))
