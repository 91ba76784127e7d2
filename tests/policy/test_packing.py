import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import PolicyError
from gym_bridge.policy.packing import pack, plan_microbatches, shareable
from gym_bridge.schemas.tokens import TrainingSequence


@st.composite
def sequences(draw):
    """Sequences over two tokens, so that beginnings coincide often; some train nothing."""
    length = draw(st.integers(1, 8))
    ids = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    mask = [False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))]
    return TrainingSequence(token_ids=np.array(ids, dtype=np.int32), train_mask=np.array(mask))


groups = st.lists(sequences(), min_size=1, max_size=6)


@given(groups)
def test_every_trained_token_is_predicted_from_exactly_the_tokens_before_it(group):
    packed = pack(group)
    visible = packed.attention_mask()[0, 0]
    expected = [(owner, int(t)) for owner, one in enumerate(group) for t in np.flatnonzero(one.train_mask)]
    assert len(packed.targets) == len(expected)
    for n, (owner, t) in enumerate(expected):
        seen = visible[packed.predictors[n]]
        assert packed.token_ids[seen].tolist() == group[owner].token_ids[:t].tolist()
        assert packed.position_ids[seen].tolist() == list(range(t))
        assert (packed.targets[n], packed.sequence[n]) == (group[owner].token_ids[t], owner)


@given(groups)
def test_packing_never_costs_tokens_and_never_shares_a_trained_one(group):
    num_packed = len(pack(group).token_ids)
    assert num_packed <= sum(len(one.token_ids) for one in group)
    own = [len(one.token_ids) - (shareable(one) if one.num_trained else 0) for one in group]
    assert num_packed >= sum(own)


@given(groups, st.integers(1, 20))
def test_microbatches_keep_the_order_and_the_limit(group, limit):
    batches = plan_microbatches(group, max_tokens=limit)
    assert [id(one) for batch in batches for one in batch] == [id(one) for one in group]
    assert all(len(batch) == 1 or len(pack(batch).token_ids) <= limit for batch in batches)


def test_a_group_shares_its_prompt_and_forks_where_prompts_differ(training_sequence):
    packed = pack(
        [training_sequence("pppT", [5, 6, 7, 1]), training_sequence("pppTT", [5, 6, 7, 1, 2]), training_sequence("ppT", [5, 9, 3])]
    )
    # runs, children last come first: [5], then [9 3], then [6 7], then [1 2], then [1]
    assert sorted(packed.token_ids.tolist()) == [1, 1, 2, 3, 5, 6, 7, 9]
    assert packed.token_ids[packed.predictors].tolist() == [7, 7, 1, 9]
    assert packed.predictors[0] == packed.predictors[1]
    assert packed.targets.tolist() == [1, 1, 2, 3]
    assert packed.sequence.tolist() == [0, 1, 1, 2]


def test_equal_trained_tokens_are_computed_for_each_sequence(training_sequence):
    packed = pack([training_sequence("pTT", [5, 1, 2]), training_sequence("pTT", [5, 1, 2])])
    assert len(packed.token_ids) == 5
    assert packed.attention_mask().sum().item() == 1 + 2 * (2 + 3)


def test_members_of_a_group_fill_a_microbatch_by_what_they_add(training_sequence):
    group = [training_sequence("ppppT", [1, 2, 3, 4, token]) for token in range(5)]
    assert [len(batch) for batch in plan_microbatches(group, max_tokens=7)] == [3, 2]
    assert [len(batch) for batch in plan_microbatches(group, max_tokens=1)] == [1] * 5


@given(groups, st.integers(1, 20))
def test_pairs_are_never_parted(group, limit):
    pairs = [one for one in group for _ in range(2)]
    batches = plan_microbatches(pairs, max_tokens=limit, together=2)
    assert [id(one) for batch in batches for one in batch] == [id(one) for one in pairs]
    assert all(len(batch) % 2 == 0 for batch in batches)
    assert all(len(batch) == 2 or len(pack(batch).token_ids) <= limit for batch in batches)


def test_pairs_fill_a_microbatch_by_what_they_add(training_sequence):
    pairs = [training_sequence("pppT", [1, 2, 3, token]) for token in range(8)]  # 5 tokens a pair, 2 where the prompt stands
    assert [len(batch) for batch in plan_microbatches(pairs, max_tokens=9, together=2)] == [6, 2]
    assert [len(batch) for batch in plan_microbatches(pairs, max_tokens=5, together=2)] == [2, 2, 2, 2]


def test_a_first_token_that_trains_is_refused(training_sequence):
    with pytest.raises(PolicyError, match="the prompt is empty"):
        pack([training_sequence("TT", [1, 2])])
