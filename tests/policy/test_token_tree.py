"""What the sampler keeps between batches: a rollout's next turn goes on from its last one, and nothing outlives its weights."""

import pytest
import torch

from gym_bridge.policy.loading import load_module
from gym_bridge.policy.samplers import rows, token_tree
from gym_bridge.policy.samplers.generation import Request, generate
from gym_bridge.policy.samplers.token_tree import TokenTree
from gym_bridge.schemas.tokens import SampleKey, SamplingParams
from tests.policy.test_families import FAMILIES, write_model

SYSTEM = tuple(range(100, 300))


@pytest.fixture(params=["llama", "mistral with a window", "gemma2", "gpt-oss"])
def module(request, tmp_path, tiny_llama):
    directory = tiny_llama if request.param == "llama" else write_model(tmp_path, FAMILIES[request.param])
    return load_module(directory, device=torch.device("cpu"))


@pytest.fixture(autouse=True, params=[1, 1024], ids=["read in the tree", "copied"])
def where_beginnings_are_read(request, monkeypatch):
    """While rows grow, from nodes that they share, or from buffers of their own."""
    monkeypatch.setattr(rows, "LEAST_SHARED", request.param)


@pytest.fixture
def computed(module):
    """How many tokens each forward pass so far has had."""
    found = []
    hook = module.get_input_embeddings().register_forward_hook(lambda _, args, __: found.append(args[0].numel()))
    yield found
    hook.remove()


def sampled(tree, prompts, *, turn=0, max_tokens=6):
    requests = [
        Request(one, SamplingParams(max_tokens=max_tokens), SampleKey(0, place, 0, turn)) for place, one in enumerate(prompts)
    ]
    generate(tree, requests)
    return [one.completion(0) for one in requests]


def after(prompts, completions, more):
    return [(*prompt, *one.ids, *more) for prompt, one in zip(prompts, completions, strict=True)]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_next_turn_computes_what_is_new_and_is_what_it_would_be_alone(module, computed):
    tree, prompts = TokenTree(module), [(*SYSTEM, 5), (*SYSTEM, 5), (*SYSTEM, 6, 7, 8)]
    for turn in range(3):
        computed.clear()
        found = sampled(tree, prompts, turn=turn)
        # first the system prompt and what follows it in each; then the last sampled token and the four after it
        assert sum(computed) - 5 * 3 == (200 + 1 + 3 if turn == 0 else 3 * (1 + 4))
        assert_alike(found, sampled(TokenTree(module), prompts, turn=turn))
        prompts = after(prompts, found, (30 + turn, 31, 32, 33))


def test_rollouts_go_on_in_batches_of_their_own(module, computed):
    tree, prompts = TokenTree(module), [(*SYSTEM, 5), (*SYSTEM, 5), (*SYSTEM, 6)]
    prompts = after(prompts, sampled(tree, prompts), (40, 41))
    computed.clear()
    first = sampled(tree, prompts[:1], turn=1)
    others = [sampled(tree, prompts[place : place + 1], turn=1) for place in (1, 2)]
    assert sum(computed) == 3 * (1 + 2 + 5)
    assert_alike([*first, *others[0], *others[1]], [sampled(TokenTree(module), [one], turn=1)[0] for one in prompts])


def test_a_history_that_was_rewritten_goes_on_from_where_it_is_the_same(module, computed):
    tree, prompts = TokenTree(module), [(*SYSTEM, *range(80))]
    (found,) = sampled(tree, prompts)
    rewritten = [(*SYSTEM, *range(70), 90, *found.ids)]
    computed.clear()
    again = sampled(tree, rewritten)
    assert sum(computed) == 1 + 6 + 5
    assert_alike(again, sampled(TokenTree(module), rewritten))
    computed.clear()
    assert_alike(sampled(tree, prompts), [found])  # the one that it branched from is still whole
    assert sum(computed) == 10 + 5  # after what both begin with; a shorter beginning is no node


def test_what_is_kept_has_a_bound_and_the_newest_stays(module, monkeypatch):
    tree = TokenTree(module)
    sampled(tree, [SYSTEM])
    (only,) = tree.roots
    monkeypatch.setattr(token_tree, "KEPT_BYTES", 2 * only.num_bytes)
    for first in range(5):
        sampled(tree, [(first, *SYSTEM)])
        assert sum(one.num_bytes for one in tree.roots) <= 2 * only.num_bytes
    assert [one.ids[0] for one in tree.roots] == [4]


def test_a_batch_that_fails_leaves_nothing_half_computed(module, computed):
    tree = TokenTree(module)
    broken = module.get_output_embeddings().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampled(tree, [SYSTEM])
    broken.remove()
    assert tree.roots == []
    assert_alike(sampled(tree, [SYSTEM]), sampled(TokenTree(module), [SYSTEM]))


def test_long_prompts_are_computed_in_several_passes(module, computed, monkeypatch):
    prompts = [(*SYSTEM, *range(place, place + 40)) for place in range(6)]
    expected = sampled(TokenTree(module), prompts)
    monkeypatch.setattr(token_tree, "PASS_TOKENS", 90)
    monkeypatch.setattr(token_tree, "BLOCK", 16)
    computed.clear()
    assert_alike(sampled(TokenTree(module), prompts), expected)
    assert computed[:4] == [200, 80, 80, 80]
