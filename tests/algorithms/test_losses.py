import torch

from gym_bridge.algorithms.losses import negative_log_likelihood, sequence_negative_log_likelihood


def test_the_negative_log_likelihood_is_divided_by_the_tokens_of_the_whole_step():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    loss = negative_log_likelihood(logprobs, num_tokens=4)
    loss.backward()
    assert loss.item() == 1.5
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.25, -0.25, -0.25]


def test_weights_multiply_each_tokens_part():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    loss = negative_log_likelihood(logprobs, torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64), num_tokens=4)
    loss.backward()
    assert loss.item() == (2 + 4 + 1.5) / 4
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.5, -0.5, -0.125]


def test_by_sequence_each_counts_alike_whatever_its_length():
    logprobs = torch.tensor([-1.0, -3.0, -5.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64)
    loss = sequence_negative_log_likelihood(logprobs, torch.tensor([0, 0, 1]), weights, num_sequences=4)
    loss.backward()
    assert loss.item() == (1 * 2 + 3 * 5) / 4
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.125, -0.125, -0.75]
