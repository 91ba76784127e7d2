import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from gym_bridge.errors import PolicyError
from gym_bridge.policy import attention
from gym_bridge.policy.attention import attend, block_rows, flex_mask
from gym_bridge.policy.packing import pack
from gym_bridge.schemas.tokens import TrainingSequence


def forest():
    """Two prompts of which one has four answers, and a sequence of its own: 3 + (2 + 6 + 4 + 3) and 9 tokens."""
    group = [[5, 6, 7, 20, 21], [5, 6, 7, 30, 31, 32, 33, 34, 35], [5, 6, 7, 40, 41, 42, 43], [5, 6, 8, 50]]
    marks = [*((ids, 3) for ids in group), ([9, 1, 2, 3, 4, 5, 6, 7, 8], 4)]
    return [TrainingSequence(token_ids=np.array(ids, np.int32), train_mask=np.arange(len(ids)) >= prompt) for ids, prompt in marks]


def states(packed, *, heads=4, key_heads=2, size=8):
    """Queries, keys and values in float64; tokens that several sequences share have the same ones."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, count, len(packed.token_ids), size) for count in (heads, key_heads, key_heads))
    return [torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def spelled_out(packed, query, key, value, *, window=None, softcap=None, sinks=None):
    """Attention [1, T, h, d] token by token, each over the tokens before it of a sequence that has it."""
    place = torch.arange(len(packed.token_ids))
    rows = []
    for token in place:
        seen = [i for i in place[: token + 1].tolist() if token < packed.until[i]]
        if window is not None:
            seen = [i for i in seen if packed.position_ids[token] - packed.position_ids[i] < window]
        heads = []
        for head in range(query.shape[1]):
            group = head * key.shape[1] // query.shape[1]
            scores = key[0, group, seen] @ query[0, head, token] / query.shape[-1] ** 0.5
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            shares = scores.exp()
            total = shares.sum() + (0 if sinks is None else sinks[head].exp())
            heads.append(shares / total @ value[0, group, seen])
        rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


KINDS = {
    "plain": {},
    "window": {"window": 3},
    "softcap": {"softcap": 0.5},
    "sinks": {"s_aux": True},
    "both": {"window": 4, "softcap": 0.7},
}


@pytest.mark.parametrize("small", [1, 4, 128])  # every run a block, small subtrees joined, one block
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_attention_by_blocks_is_attention_within_each_sequence(monkeypatch, kind, small, share_prefixes):
    monkeypatch.setattr(attention, "SMALL", small)
    options = dict(KINDS[kind])
    window = options.pop("window", None)
    sinks = torch.tensor([0.3, -0.2, 1.0, 0.0], dtype=torch.float64, requires_grad=True) if options.pop("s_aux", None) else None
    packed = pack(forest(), share_prefixes=share_prefixes)
    leaves = states(packed)
    mask = block_rows(packed, window=window)
    found, _ = attend(torch.nn.Identity(), *leaves, mask, s_aux=sinks, **options)
    expected = spelled_out(packed, *leaves, window=window, sinks=sinks, **options)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    wanted = [*leaves, *([sinks] if sinks is not None else [])]
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients, slow = (torch.autograd.grad((one * pull).sum(), wanted) for one in (found, expected))
    for gradient, one in zip(gradients, slow, strict=True):
        torch.testing.assert_close(gradient, one, atol=1e-12, rtol=0)


@st.composite
def groups(draw):
    """Sequences over two tokens, so that beginnings coincide often."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, 1), min_size=2, max_size=9))
        made.append(TrainingSequence(token_ids=np.array(ids, np.int32), train_mask=np.arange(len(ids)) >= draw(st.integers(1, 8))))
    return made


@given(group=groups(), small=st.integers(1, 12), window=st.none() | st.integers(1, 5))
def test_blocks_hold_every_pair_of_tokens_that_see_each_other_once(group, small, window):
    packed = pack(group)
    before, attention.SMALL = attention.SMALL, small
    try:
        mask = block_rows(packed, window=window)
    finally:
        attention.SMALL = before
    size = len(packed.token_ids)
    place = torch.arange(size)
    parts = place.split(mask.lengths)
    found = torch.zeros(size, size, dtype=torch.int64)
    for own, block in zip(parts, mask.blocks, strict=True):
        seen = torch.cat([*(parts[one] for one in block.context), own])
        visible = torch.ones(len(own), len(own)).tril() if block.mask is None else block.mask
        found[own[:, None], seen] += visible.long()
    apart = packed.position_ids[:, None] - packed.position_ids
    expected = (place <= place[:, None]) & (place[:, None] < packed.until) & (apart < (window or size))
    assert torch.equal(found, expected.long())


def test_long_sequences_beside_each_other_cost_no_more_than_each_alone(training_sequence):
    first, second = (training_sequence("p" + "T" * 299, [start] * 300) for start in (1, 2))
    mask = block_rows(pack([first, second]))
    assert mask.lengths == [300, 300]
    assert [(block.context, block.mask) for block in mask.blocks] == [((), None), ((), None)]


def test_answers_to_one_long_prompt_attend_to_it_and_to_themselves(training_sequence):
    pair = [training_sequence("p" * 300 + "T" * 200, [1] * 300 + [token] * 200) for token in (2, 3)]
    mask = block_rows(pack(pair))
    assert mask.lengths == [300, 200, 200]
    assert [block.context for block in mask.blocks] == [(), (0,), (0,)]
    assert [None if block.mask is None else tuple(block.mask.shape) for block in mask.blocks] == [None, (200, 500), (200, 500)]


def test_a_model_that_computes_with_the_mask_itself_is_told_so():
    packed = pack(forest())
    mask, size = block_rows(packed), len(packed.token_ids)
    assert (mask.shape, mask.dtype, mask.device) == ((1, 1, size, size), torch.bool, torch.device("cpu"))
    with pytest.raises(PolicyError, match="computes with its attention mask itself"):
        torch.zeros(1) + mask


def test_biases_on_scores_are_refused():
    packed = pack(forest())
    with pytest.raises(PolicyError, match="adds a bias to its attention scores"):
        attend(torch.nn.Identity(), *states(packed), block_rows(packed), position_bias=torch.zeros(1))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_sees_what_blocks_see(window):
    packed = pack(forest() * 8)  # more tokens than one of its blocks of 128 has
    query, key, value = (one.detach().float() for one in states(packed, size=16))
    found = flex_attention(query, key, value, block_mask=flex_mask(packed, window=window), enable_gqa=True)
    expected, _ = attend(torch.nn.Identity(), query, key, value, block_rows(packed, window=window))
    assert len(packed.token_ids) > 128
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"softcap": 0.5}], ids=["plain", "softcap"])
@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_equals_blocks_on_a_gpu_forward_and_backward(window, options):
    packed = pack(forest() * 16, device="cuda")
    leaves = [one.detach().float().cuda().requires_grad_() for one in states(packed, size=32)]
    masks = (flex_mask(packed, window=window), block_rows(packed, window=window))
    found, expected = (attend(torch.nn.Identity(), *leaves, mask, **options)[0] for mask in masks)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    pull = torch.randn_like(found)
    gradients, wanted = (torch.autograd.grad((one * pull).sum(), leaves) for one in (found, expected))
    for gradient, one in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, one, atol=1e-3, rtol=1e-3)
