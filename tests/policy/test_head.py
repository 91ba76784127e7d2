import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gym_bridge.policy import head as head_module
from gym_bridge.policy.head import CHUNK, OutputHead, token_logprobs

HEADS = {"plain": {}, "softcap": {"softcap": 3.0}, "scale": {"scale": 0.25}, "scale and softcap": {"scale": 0.25, "softcap": 1.5}}


def whole(hidden, head, targets):
    """Log-probs and entropies from [N, V] logits at once."""
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logprobs = torch.log_softmax(logits, dim=-1)
    return logprobs[torch.arange(len(targets)), targets], -(logprobs.exp() * logprobs).sum(dim=-1)


def inputs(count, dtype=torch.float64, *, vocabulary=60):
    """Hidden states, weight, bias, targets and the gradient that comes from above."""
    generator = torch.Generator().manual_seed(count)
    shapes = ((count, 8), (vocabulary, 8), (vocabulary,))
    leaves = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    targets = torch.randint(vocabulary, (count,), generator=generator)
    return *leaves, targets, torch.randn(count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", HEADS)
@pytest.mark.parametrize("count", [1, CHUNK, 2 * CHUNK + 37])
def test_the_chunked_head_equals_full_logits_and_their_gradients(count, shape, with_bias):
    hidden, weight, bias, targets, pull = inputs(count)
    leaves = (hidden, weight, bias) if with_bias else (hidden, weight)
    head = OutputHead(weight=weight, bias=bias if with_bias else None, **HEADS[shape])
    logprobs, entropies = token_logprobs(hidden, targets, head)
    expected, expected_entropies = whole(hidden, head, targets)
    torch.testing.assert_close(logprobs, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(entropies, expected_entropies, atol=1e-10, rtol=0)
    gradients = torch.autograd.grad((logprobs * pull).sum(), leaves)
    for gradient, one in zip(gradients, torch.autograd.grad((expected * pull).sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, one, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", HEADS)
def test_a_head_that_does_not_train_passes_the_same_gradient_on(shape):
    hidden, weight, bias, targets, pull = inputs(CHUNK + 5)
    head = OutputHead(weight=weight.detach(), bias=bias.detach(), **HEADS[shape])
    logprobs, _ = token_logprobs(hidden, targets, head)
    expected, _ = whole(hidden, head, targets)
    (gradient,), (wanted,) = (torch.autograd.grad((one * pull).sum(), hidden) for one in (logprobs, expected))
    torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=0)


def test_a_head_whose_bias_alone_trains_gets_its_gradient():
    hidden, weight, bias, targets, pull = inputs(9)
    head = OutputHead(weight=weight.detach(), bias=bias)
    logprobs, expected = token_logprobs(hidden, targets, head)[0], whole(hidden, head, targets)[0]
    gradients, wanted = (torch.autograd.grad((one * pull).sum(), (hidden, bias)) for one in (logprobs, expected))
    for gradient, one in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, one, atol=1e-10, rtol=0)


def test_a_bfloat16_head_adds_its_chunks_up_in_float32():
    count = 16 * CHUNK
    hidden, weight, _, targets, _ = inputs(count, torch.bfloat16)
    logprobs, _ = token_logprobs(hidden, targets, OutputHead(weight=weight))
    assert logprobs.dtype == torch.float32
    gradient = torch.autograd.grad(logprobs.sum(), weight)[0].double()
    logits = (hidden @ weight.T).double()
    slope = torch.nn.functional.one_hot(targets, 60) - torch.softmax(logits, dim=-1)
    wanted = slope.T @ hidden.double()
    assert (gradient - wanted).norm() / wanted.norm() < 4e-3  # one rounding to 8 bits; sixteen of them give more than 6e-3


@pytest.mark.parametrize("parts", [(0, 1), (1,)])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", HEADS)
def test_the_entropy_has_the_gradient_of_full_logits(shape, frozen, parts):
    hidden, weight, bias, targets, pull = inputs(CHUNK + 5)
    leaves = (hidden,) if frozen else (hidden, weight, bias)
    head = OutputHead(weight=weight.detach() if frozen else weight, bias=bias.detach() if frozen else bias, **HEADS[shape])
    pulls = (pull, pull.flip(0))
    found, expected = (
        torch.autograd.grad(sum((values[part] * pulls[part]).sum() for part in parts), leaves)
        for values in (token_logprobs(hidden, targets, head), whole(hidden, head, targets))
    )
    for gradient, one in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, one, atol=1e-10, rtol=0)


def test_logits_exist_for_one_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK", 16)
    hidden, weight, bias, targets, _ = inputs(50, torch.float32, vocabulary=600)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            sizes.extend(one.numel() for one in (made if isinstance(made, tuple) else [made]) if isinstance(one, torch.Tensor))
            return made

    with Sizes():
        logprobs, _ = token_logprobs(hidden, targets, OutputHead(weight=weight, bias=bias, softcap=4.0))
        logprobs.sum().backward()
    assert max(sizes) == 16 * 600


def test_a_uniform_distribution_has_the_logarithm_of_the_vocabulary_as_entropy():
    logprobs, entropies = token_logprobs(torch.zeros(2, 4), torch.tensor([0, 7]), OutputHead(weight=torch.ones(8, 4)))
    assert logprobs.tolist() == pytest.approx([-2.0794415, -2.0794415])
    assert entropies.tolist() == pytest.approx([2.0794415, 2.0794415])


def test_no_trained_token_gives_no_logprob_and_a_gradient_of_zero():
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(8, 4, requires_grad=True)
    logprobs, entropies = token_logprobs(hidden, torch.zeros(0, dtype=torch.int64), OutputHead(weight=weight))
    assert (len(logprobs), len(entropies)) == (0, 0)
    assert torch.autograd.grad(logprobs.sum(), weight)[0].abs().sum() == 0
