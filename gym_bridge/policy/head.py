"""Log-probabilities from hidden states, in chunks: [T, V] logits never exist.

N = trained tokens, H = hidden size, V = vocabulary.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # trained tokens whose logits exist at a time


def token_logprobs(
    hidden: Tensor,  # [N, H] hidden states that predict the targets
    weight: Tensor,  # [V, H] output embedding
    targets: Tensor,  # [N] int64
    *,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of each target and entropy [N] of its distribution in nats, both float32.

    The logits of a chunk are computed again in the backward pass instead of being kept. The entropy carries no gradient.
    """
    logprobs, entropies = [], []
    for part, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        if torch.is_grad_enabled():
            logprob, entropy = checkpoint(_chunk, part, weight, target, softcap, use_reentrant=False)
        else:
            logprob, entropy = _chunk(part, weight, target, softcap)
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    logits = (hidden @ weight.T).float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    normaliser = logits.logsumexp(dim=-1)
    logprob = logits.gather(1, targets[:, None])[:, 0] - normaliser
    with torch.no_grad():
        entropy = normaliser - (torch.softmax(logits, dim=-1) * logits).sum(dim=-1)
    return logprob, entropy
