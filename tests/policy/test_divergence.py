import numpy as np
import torch
from transformers import AutoModelForCausalLM

from gym_bridge.policy.divergence import divergence
from gym_bridge.policy.frozen_model import FrozenModel
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence

SETTINGS = PolicySettings(compute_dtype="float32")


def sequence(ids: list[int], trained: int) -> TrainingSequence:
    """The last `trained` of the ids were sampled."""
    mask = np.arange(len(ids)) >= len(ids) - trained
    return TrainingSequence(token_ids=np.array(ids, dtype=np.int32), train_mask=mask)


def plain_logprobs(model, one: TrainingSequence) -> torch.Tensor:
    """As transformers says them, without packing."""
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor(one.token_ids.tolist())[None]
    with torch.no_grad():
        found = module(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return found[torch.from_numpy(one.train_mask[1:])]


def test_it_is_the_estimate_k3_of_each_sampled_token(tiny_llama, tiny_qwen3):
    sequences = [sequence([5, 9, 14, 3, 8], 2), sequence([5, 9, 14, 30], 3)]
    policy, baseline = (FrozenModel(one, SETTINGS) for one in (tiny_llama, tiny_qwen3))
    for one, found in zip(sequences, divergence(sequences, policy, baseline), strict=True):
        log_ratios = plain_logprobs(tiny_qwen3, one) - plain_logprobs(tiny_llama, one)
        torch.testing.assert_close(found, log_ratios.exp() - 1 - log_ratios, rtol=1e-4, atol=1e-5)
        assert (found > 0).all()


def test_a_policy_has_not_gone_from_itself(tiny_llama):
    (found,) = divergence([sequence([5, 9, 14, 3, 8], 2)], FrozenModel(tiny_llama, SETTINGS), FrozenModel(tiny_llama, SETTINGS))
    assert found.tolist() == [0.0, 0.0]
