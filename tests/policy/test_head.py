import pytest
import torch

from gym_bridge.policy.head import CHUNK, token_logprobs


def whole(hidden, weight, targets, softcap):
    """Log-probs and entropies from [N, V] logits at once, in float64."""
    logits = hidden.double() @ weight.double().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(logits, dim=-1)
    return logprobs[torch.arange(len(targets)), targets], -(logprobs.exp() * logprobs).sum(dim=-1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("count", [1, CHUNK, 2 * CHUNK + 37])
def test_the_chunked_head_equals_full_logits_and_their_gradients(count, softcap):
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, 8, generator=generator, requires_grad=True)
    weight = torch.randn(60, 8, generator=generator, requires_grad=True)
    targets = torch.randint(60, (count,), generator=generator)
    pull = torch.randn(count, generator=generator)
    logprobs, entropies = token_logprobs(hidden, weight, targets, softcap=softcap)
    expected, expected_entropies = whole(hidden, weight, targets, softcap)
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), expected_entropies, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad((logprobs * pull).sum(), (hidden, weight))
    expected_gradients = torch.autograd.grad((expected * pull.double()).sum(), (hidden, weight))
    for gradient, one in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, one, atol=1e-4, rtol=1e-4)


def test_a_uniform_distribution_has_the_logarithm_of_the_vocabulary_as_entropy():
    logprobs, entropies = token_logprobs(torch.zeros(2, 4), torch.ones(8, 4), torch.tensor([0, 7]))
    assert logprobs.tolist() == pytest.approx([-2.0794415, -2.0794415])
    assert entropies.tolist() == pytest.approx([2.0794415, 2.0794415])


def test_no_trained_token_gives_no_logprob():
    hidden = torch.zeros(0, 4, requires_grad=True)
    logprobs, entropies = token_logprobs(hidden, torch.ones(8, 4), torch.zeros(0, dtype=torch.int64))
    assert (len(logprobs), len(entropies)) == (0, 0)
