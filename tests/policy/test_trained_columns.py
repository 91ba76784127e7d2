"""The columns of a microbatch's trained tokens, as a loss sees them."""

from dataclasses import replace

import numpy as np
import torch

from gym_bridge.schemas.seams import Loss
from tests.policy.stage import open_policy

NAN = float("nan")


def seen(policy, sequences):
    """The columns that a loss gets for one microbatch."""
    caught = []

    def loss(logprobs, columns):
        caught.append(columns)
        return Loss(logprobs.sum() * 0)

    policy.evaluate([sequences], loss)
    return caught[0]


def column(*values):
    return np.array(values, dtype=np.float32)


def test_each_column_stands_at_the_trained_tokens_and_what_is_missing_is_told_by_its_stand_in_or_nan(tiny_llama, training_sequence):
    whole = replace(
        training_sequence("pTpT", [3, 9, 4, 8], old=-0.5, advantage=7.0),
        old_logprobs=column(NAN, -1, NAN, -2),
        ref_logprobs=column(NAN, -3, NAN, -4),
        advantages=column(NAN, 0.25, NAN, -0.75),
        returns=column(NAN, 5, NAN, 6),
        old_values=column(NAN, 0.5, NAN, 1.5),
        weight=2.0,
        margin=3.0,
    )
    sampled, bare = training_sequence("ppT", [3, 5, 6], old=-0.125, advantage=-2.0), training_sequence("ppT", [3, 5, 7])
    found = seen(open_policy(tiny_llama), [whole, sampled, bare])
    expected = {
        "rollout_logprobs": [-0.5, -0.5, -0.125, NAN],
        "old_logprobs": [-1, -2, -0.125, NAN],
        "ref_logprobs": [-3, -4, NAN, NAN],
        "advantages": [0.25, -0.75, -2, 1],
        "returns": [5, 6, NAN, NAN],
        "old_values": [0.5, 1.5, NAN, NAN],
        "weights": [2, 2, 1, 1],
        "margins": [3, 3, 0, 0],
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(found, name), torch.tensor(values, dtype=torch.float32), equal_nan=True, rtol=0, atol=0)
    assert found.sequence.tolist() == [0, 0, 1, 2]
    assert (found.num_tokens, found.num_sequences) == (4, 3)
