"""A policy over a tiny model, losses for it, and what its steps leave behind."""

from pathlib import Path

import torch

from gym_bridge.algorithms.losses import negative_log_likelihood
from gym_bridge.policy.live_bytes import LiveBytes
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import PolicySettings


def open_policy(directory, *, head="lm", total_steps=None, placement=None, **settings):
    """A policy in float32 unless told otherwise, in float64 too, which users do not have."""
    exact = {name: settings.pop(name) for name in ("compute_dtype", "master_dtype") if settings.get(name) == "float64"}
    chosen = PolicySettings(**{"compute_dtype": "float32", "lr": 1e-3, **settings}).model_copy(update=exact)
    return TorchPolicy(Path(directory), chosen, head=head, total_steps=total_steps, placement=placement)


def mean_nll(logprobs, columns):
    """The mean over trained tokens."""
    return Loss(negative_log_likelihood(logprobs, num_tokens=columns.num_tokens))


def weighted(logprobs, columns):
    """The mean over trained tokens, each times its advantage."""
    return Loss(-(logprobs * columns.advantages).sum() / columns.num_tokens)


def bytes_of_a_step(policy, microbatches):
    """Of all tensors at the fullest moment of a step."""
    masters = policy.masters
    tensors = [*policy.module.parameters(), *policy.module.buffers(), *masters.masters.values()]
    with LiveBytes([*tensors, *masters.gradients, *masters.moments]) as live:
        policy.step(microbatches, mean_nll)
    return live.most


def weights_of(policy):
    """Copies of the master weights."""
    return {name: tensor.detach().clone() for name, tensor in policy.masters.masters.items()}


def same(first, second):
    """True for equal names and equal bits."""
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def assert_merged_takes_the_same_step(adapted, directory, microbatches):
    """An adapted policy and the model that it saves: the same log-probs, loss and, by the chain rule, gradients."""
    adapted.save(directory, source_state={})
    merged, whole = open_policy(directory / "model"), [one for part in microbatches for one in part]
    lora, masters = adapted.settings.lora, weights_of(adapted)
    for one, other in zip(adapted.logprobs(whole), merged.logprobs(whole), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    found, result = gradients_of_step(adapted, microbatches, weighted)
    expected, other = gradients_of_step(merged, [whole], weighted)
    assert abs(result.metrics["loss"] - other.metrics["loss"]) <= 1e-5
    for name, gradient in found.items():
        owner, side = name.removesuffix(".default.weight").split(".lora_")
        partner = masters[f"{owner}.lora_{'B' if side == 'A' else 'A'}.default.weight"].T
        of_merged = expected[f"{owner}.weight"]
        chained = lora.alpha / lora.rank * (partner @ of_merged if side == "A" else of_merged @ partner)
        torch.testing.assert_close(gradient, chained, atol=1e-5, rtol=1e-4)


def gradients_of_step(policy, microbatches, loss_fn):
    """The gradients added up over all microbatches, as autograd leaves them, and the step's result."""
    caught = {}

    def catch(name):
        return lambda param: caught.__setitem__(name, param.grad.clone())

    trained = [(name, param) for name, param in policy.module.named_parameters() if param.requires_grad]
    handles = [param.register_post_accumulate_grad_hook(catch(name)) for name, param in trained]
    result = policy.step(microbatches, loss_fn)
    for handle in handles:
        handle.remove()
    return caught, result
