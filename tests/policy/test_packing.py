import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import PolicyError
from gym_bridge.policy.packing import assign_units, pack, plan_microbatches, shareable
from gym_bridge.schemas.tokens import TrainingSequence


@st.composite
def sequences(draw):
    """Sequences over two tokens, so that beginnings coincide often; some train nothing."""
    length = draw(st.integers(1, 8))
    ids = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    mask = [False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))]
    return TrainingSequence(token_ids=np.array(ids, dtype=np.int32), train_mask=np.array(mask))


groups = st.lists(sequences(), min_size=1, max_size=6)


def visible(packed):
    """[T, T] bool from the tree itself: a token sees its own run up to itself and every run above it."""
    bounds = list(pairwise([*packed.starts, len(packed.token_ids)]))
    seen = np.zeros((bounds[-1][1], bounds[-1][1]), dtype=bool)
    for run, (start, end) in enumerate(bounds):
        seen[start:end, start:end] = np.tri(end - start, dtype=bool)
        above = packed.parents[run]
        while above >= 0:
            seen[start:end, slice(*bounds[above])] = True
            above = packed.parents[above]
    return seen


@pytest.mark.parametrize("share_prefixes", [True, False])
@given(group=groups)
def test_every_trained_token_is_predicted_from_exactly_the_tokens_before_it(share_prefixes, group):
    packed = pack(group, share_prefixes=share_prefixes)
    seen_by = visible(packed)
    expected = [(owner, int(t)) for owner, one in enumerate(group) for t in np.flatnonzero(one.train_mask)]
    assert len(packed.targets) == len(expected)
    for n, (owner, t) in enumerate(expected):
        seen = seen_by[packed.predictors[n]]
        assert packed.token_ids[seen].tolist() == group[owner].token_ids[:t].tolist()
        assert packed.position_ids[seen].tolist() == list(range(t))
        assert (packed.targets[n], packed.sequence[n]) == (group[owner].token_ids[t], owner)
        assert packed.token_ids[packed.trained[n]] == group[owner].token_ids[t]


@given(groups, st.integers(1, 8))
def test_filler_makes_a_multiple_and_changes_nothing_else(group, multiple_of):
    packed, filled = pack(group), pack(group, multiple_of=multiple_of)
    assert filled.num_tokens == len(packed.token_ids) == packed.num_tokens
    assert len(filled.token_ids) == -(-packed.num_tokens // multiple_of) * multiple_of == len(filled.position_ids)
    own = slice(packed.num_tokens)
    assert (visible(filled)[own, own] == visible(packed)).all()
    assert not visible(filled)[own, packed.num_tokens :].any()
    assert not visible(filled)[packed.num_tokens :, own].any()
    for name in ("token_ids", "position_ids", "until"):
        assert (getattr(filled, name)[own] == getattr(packed, name)).all()
    for name in ("predictors", "targets", "trained", "sequence"):
        assert (getattr(filled, name) == getattr(packed, name)).all()


@given(groups)
def test_a_token_is_seen_until_its_subtree_ends(group):
    packed = pack(group)
    place = np.arange(len(packed.token_ids))
    seen = (place <= place[:, None]) & (place[:, None] < packed.until.numpy())
    assert (seen == visible(packed)).all()


@given(groups)
def test_packing_never_costs_tokens_and_never_shares_a_trained_one(group):
    num_packed = len(pack(group).token_ids)
    assert num_packed <= sum(len(one.token_ids) for one in group)
    own = [len(one.token_ids) - (shareable(one) if one.num_trained else 0) for one in group]
    assert num_packed >= sum(own)


def test_a_group_shares_its_prompt_and_forks_where_prompts_differ(training_sequence):
    packed = pack(
        [training_sequence("pppT", [5, 6, 7, 1]), training_sequence("pppTT", [5, 6, 7, 1, 2]), training_sequence("ppT", [5, 9, 3])]
    )
    assert packed.token_ids.tolist() == [5, 6, 7, 1, 1, 2, 9, 3]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 3, 4, 1, 2]
    assert (packed.starts, packed.parents) == ((0, 1, 3, 4, 6), (-1, 0, 1, 1, 0))
    assert packed.until.tolist() == [8, 6, 6, 4, 6, 6, 8, 8]
    assert packed.predictors.tolist() == [2, 2, 4, 6]
    assert packed.targets.tolist() == [1, 1, 2, 3]
    assert packed.sequence.tolist() == [0, 1, 1, 2]


def test_sequences_packed_apart_share_nothing(training_sequence):
    group = [training_sequence("ppT", [5, 6, 1]), training_sequence("ppT", [5, 6, 2])]
    packed = pack(group, share_prefixes=False)
    assert packed.token_ids.tolist() == [5, 6, 1, 5, 6, 2]
    assert packed.until.tolist() == [3, 3, 3, 6, 6, 6]


def test_equal_trained_tokens_are_computed_for_each_sequence(training_sequence):
    packed = pack([training_sequence("pTT", [5, 1, 2]), training_sequence("pTT", [5, 1, 2])])
    assert packed.token_ids.tolist() == [5, 1, 2, 1, 2]
    assert visible(packed).sum() == 1 + 2 * (2 + 3)


def test_a_first_token_that_trains_is_refused(training_sequence):
    with pytest.raises(PolicyError, match="the prompt is empty"):
        pack([training_sequence("TT", [1, 2])])


units = st.lists(st.lists(sequences(), min_size=1, max_size=3), min_size=0, max_size=8)


@given(units, st.integers(1, 30), st.booleans())
def test_every_unit_is_in_one_microbatch_whole_and_none_exceeds_the_limit(some, limit, sharing):
    batches = plan_microbatches(some, max_tokens=limit, share_prefixes=sharing)
    where = {id(one): place for place, batch in enumerate(batches) for one in batch}
    assert sum(map(len, batches)) == len(where) == sum(map(len, some))
    for unit in some:
        batch = batches[where[id(unit[0])]]
        first = next(place for place, one in enumerate(batch) if one is unit[0])
        assert [id(one) for one in batch[first : first + len(unit)]] == [id(one) for one in unit]
        alone = len(batch) == len(unit)
        assert alone or len(pack(batch, share_prefixes=sharing).token_ids) <= limit


def plain(training_sequence, *lengths):
    """Units of one sequence each, of these lengths, which begin with different tokens."""
    return [[training_sequence("p" + "T" * (size - 1), [first] * size)] for first, size in enumerate(lengths)]


def test_a_plan_takes_as_few_microbatches_as_the_limit_allows(training_sequence):
    some = plain(training_sequence, 6, 4, 5, 5, 7, 3)  # in the order given, next to each other, they would take four
    assert len(assign_units(some, max_tokens=10)) == 3
    assert assign_units(some, max_tokens=10) == [[0, 1], [2, 3], [4, 5]]
    assert assign_units(some, max_tokens=1) == [[0], [1], [2], [3], [4], [5]]
    assert assign_units([], max_tokens=10) == []


def test_microbatches_cost_about_the_same(training_sequence):
    some = plain(training_sequence, 600, 600, 300, 300, 300, 300)
    batches = assign_units(some, max_tokens=1500)  # filled one after the other: 1500 and 900
    assert [[len(some[index][0].token_ids) for index in batch] for batch in batches] == [[600, 300, 300], [600, 300, 300]]
    batches = assign_units(plain(training_sequence, *[50] * 8), max_tokens=300)
    assert [len(batch) for batch in batches] == [4, 4]


def test_attention_makes_one_long_sequence_cost_more_than_many_short_ones(training_sequence):
    some = plain(training_sequence, 4000, *[500] * 12)
    batches = assign_units(some, max_tokens=6000)
    # 4000 tokens cost 4000 + 8.002 million / 6000 = 5334, 500 cost 521: 3 and 9 would be even in tokens at 5500 and 4500
    assert [sum(len(some[index][0].token_ids) for index in batch) for batch in batches] == [4500, 5500]


def test_members_of_a_group_fill_a_microbatch_by_what_they_add(training_sequence):
    group = [[training_sequence("ppppT", [1, 2, 3, 4, token])] for token in range(5)]
    assert [len(batch) for batch in plan_microbatches(group, max_tokens=7)] == [3, 2]
    assert [len(batch) for batch in plan_microbatches(group, max_tokens=1)] == [1] * 5
    assert [len(batch) for batch in plan_microbatches(group, max_tokens=10, share_prefixes=False)] == [2, 2, 1]


def test_pairs_fill_a_microbatch_by_what_they_add(training_sequence):
    pairs = [[training_sequence("pppT", [1, 2, 3, token]) for token in both] for both in ((0, 1), (2, 3), (4, 5), (6, 7))]
    # 5 tokens a pair, 2 where the prompt stands
    assert [len(batch) for batch in plan_microbatches(pairs, max_tokens=9)] == [4, 4]
    assert [len(batch) for batch in plan_microbatches(pairs, max_tokens=11)] == [8]
    assert [len(batch) for batch in plan_microbatches(pairs, max_tokens=5)] == [2, 2, 2, 2]


def test_units_that_begin_alike_stay_together_however_they_are_mixed(training_sequence):
    first, second = ([training_sequence("pppppT", [start] * 5 + [token]) for token in range(4)] for start in (7, 8))
    mixed = [[one] for both in zip(first, second, strict=True) for one in both]
    assert assign_units(mixed, max_tokens=9) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(
    ("lengths", "num_shares", "count"), [([4] * 8, 2, 2), ([4] * 9, 4, 4), ([40, 4, 4, 4], 3, 3), ([9, 9], 4, 2)]
)
def test_each_of_several_processes_gets_as_many_microbatches_where_there_are_enough_sequences(
    training_sequence, lengths, num_shares, count
):
    units = [(training_sequence("p" * (length - 1) + "T", [10 + index] * length),) for index, length in enumerate(lengths)]
    plan = plan_microbatches(units, max_tokens=1024, multiple_of=num_shares)
    assert len(plan) == count
    assert sorted(len(one.token_ids) for part in plan for one in part) == sorted(lengths)
    sizes = [sum(len(one.token_ids) for one in part) for part in plan]
    assert max(sizes) <= max(max(lengths), 1.5 * sum(lengths) / count)


def test_a_plan_does_not_depend_on_anything_but_the_units(training_sequence):
    some = plain(training_sequence, *[20, 30, 20, 30, 25] * 6)
    assert assign_units(some, max_tokens=100) == assign_units(list(some), max_tokens=100)
    assert sorted(index for batch in assign_units(some, max_tokens=100) for index in batch) == list(range(30))


@pytest.mark.slow
def test_hundreds_of_long_sequences_are_planned_and_packed_in_a_moment():
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 50000, 1500) for _ in range(32)]
    some = []
    for number in range(512):
        ids = np.concatenate([prompts[number % 32], draw.integers(0, 50000, 1500)]).astype(np.int32)
        some.append([TrainingSequence(token_ids=ids, train_mask=np.arange(3000) >= 1500)])
    started = time.perf_counter()
    batches = plan_microbatches(some, max_tokens=16384)
    packs = [pack(batch) for batch in batches]
    assert sum(len(one.token_ids) for one in packs) <= 512 * 1500 + (32 + len(batches)) * 1500
    assert time.perf_counter() - started < 5
