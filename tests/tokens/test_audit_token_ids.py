"""Token ids in rows and in the store: prefixes, log-probs, masks. ids: 1 <|im_start|>, 2 <|im_end|>, which ends an answer."""

import math

import pytest

from gym_bridge.io.token_store import TokenStore
from tests.tokens.audit_stage import audit_rows, called, inline, returned, rollout, said, told, turn


@pytest.fixture
def audit(renderer, tmp_path):
    return lambda *rows, **settings: audit_rows(tmp_path, renderer, *rows, **settings)


@pytest.fixture
def encode(renderer):
    return renderer.tokenizer.encode


def test_stored_tokens_are_counted_and_their_logprobs_checked(audit, tmp_path):
    store = TokenStore(tmp_path / "rows.tokens")
    two_turns = [turn([5, 6], [7, 2], [-0.1, -0.2]), turn([5, 6, 7, 2, 8], [9], [-0.3], starts=False)]
    store.append(
        [
            ((0, 0, 0), two_turns),
            ((1, 0, 0), [turn([5], [6], [math.nan])]),
            ((2, 0, 0), [turn([5], [6], [0.5])]),
            ((4, 0, 1), [turn([5], [6], [-1.0])]),
        ]
    )
    report = audit(*map(rollout, range(4)), rollout(4, 0.0, gym_bridge={"attempt": 1}), show=1)
    assert [(one.line, one.check) for one in report.problems] == [(2, "logprobs"), (3, "logprobs"), (4, "tokens")]
    assert report.problems[0].message == report.problems[1].message == "turn 0 has a log-prob that is not finite or above 0"
    assert report.problems[2].message.endswith("holds no tokens of task 3, rollout 0, attempt 0")
    assert (report.num_tokens, report.num_trained_tokens, report.longest, report.num_segments) == (12, 6, 6, 4)
    assert [trains for _, trains in report.shown[0].tokens] == [False, False, True, True, False, True]


def test_inline_ids_are_counted_as_the_store_would_be(audit, encode):
    answer, call = [*encode("4"), 2], [*encode("add"), 2]
    items = [
        called("a", **inline([5, 6], call, [-0.5] * len(call))),
        returned("a"),
        said("4", **inline([5, 6, *call, 8], answer, [-0.1, 0])),
    ]
    report = audit(rollout(0, items=items), show=1)
    assert told(report) == []
    assert (report.num_tokens, report.num_trained_tokens) == (3 + len(call) + 2, len(call) + 2)
    assert [trains for _, trains in report.shown[0].tokens] == [False] * 2 + [True] * len(call) + [False] + [True] * 2


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        ([-0.1], "an output item has 2 generation_token_ids and 1 generation_log_probs"),
        ([-0.1, None], "an output item with token ids has no list of numbers as generation_log_probs"),
        ([-0.1, 0.2], "turn 0 has a log-prob that is not finite or above 0"),
        (None, "an output item with token ids has no list of numbers as generation_log_probs"),
    ],
)
def test_inline_logprobs_are_finite_not_above_0_and_aligned(audit, encode, logprobs, message):
    report = audit(rollout(0, items=[said("4", **inline([5], [*encode("4"), 2], logprobs))]))
    assert told(report) == [(1, "logprobs", message)]


def test_a_prompt_that_does_not_begin_with_the_turn_before_is_a_new_segment_and_no_problem(audit, encode):
    four = encode("4")
    items = [said("4", **inline([5, 6], [*four, 2], [-1, -1])), said("4", **inline([5, 9], [*four, 2], [-1, -1]))]
    report = audit(rollout(0, items=items))
    assert told(report) == [(1, "segments", "turn 1 starts a new segment: its prompt keeps 1 of the 4 tokens of turn 0")]
    assert (report.num_segments, report.num_tokens, report.longest, report.num_problems) == (2, 8, 4, 0)


def test_tokens_after_the_end_of_an_answer_are_none_that_were_sampled(audit, encode):
    masked_too_much = [*encode("4"), 2, 1, *encode("user"), 2]
    items = [said("4", **inline([5], masked_too_much, [-1.0] * len(masked_too_much)))]
    rest = len(masked_too_much) - 2
    assert told(audit(rollout(0, items=items))) == [
        (1, "mask", f"{rest} tokens after the end of the answer of turn 0 would train; the model did not sample them")
    ]


def test_the_same_holds_for_the_token_store(audit, tmp_path):
    TokenStore(tmp_path / "rows.tokens").append(
        [((0, 0, 0), [turn([5], [7, 2, 1], [-1, -1, -1])]), ((1, 0, 0), [turn([], [7], [-1])])]
    )
    report = audit(rollout(0), rollout(1))
    assert [(one.line, one.check) for one in report.problems] == [(1, "mask"), (2, "tokens")]


def test_tokens_that_say_something_else_than_the_row_are_a_problem(audit, encode):
    fabricated = inline([5], [0], [0.0])
    honest = inline([5], encode("The answer\n is 4."), [-1.0] * len(encode("The answer\n is 4.")))
    report = audit(
        rollout(0, items=[said("The answer is 4.", **honest)]),
        rollout(1, items=[said("The answer is 4.", **fabricated)]),
        rollout(2, items=[called("a", **honest), returned("a")]),
    )
    assert [(line, check) for line, check, _ in told(report)] == [(2, "text"), (3, "text")]
    assert "turn 0 do not hold 'The answer is 4.'; is this the model" in report.problems[0].message
    assert "do not hold 'add'" in report.problems[1].message


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        ([-7], [-1.0], "-7 is no token id"),
        ([2**31], [-1.0], "2147483648 is no token id"),
        (["a"], [-1.0], "an output item with token ids has no list of numbers"),
    ],
)
def test_ids_that_are_none_are_a_problem(audit, ids, logprobs, message):
    ((_, check, text),) = told(audit(rollout(0, items=[said("", **inline([5], ids, logprobs))])))
    assert check == "tokens"
    assert text.startswith(message)


@pytest.mark.parametrize("versions", [5, [[0]], {"a": 1}])
def test_policy_versions_of_the_wrong_type_are_a_problem(audit, encode, versions):
    row = rollout(0, items=[said("4", **inline([5], encode("4"), [-1.0]))], gym_bridge={"policy_versions": versions})
    assert told(audit(row)) == [(1, "tokens", "'policy_versions' of 'gym_bridge' is no list of integers")]


def test_a_rollout_with_a_call_without_ids_is_told_for_nothing_trains_on_it(audit, encode):
    with_ids = inline([5], encode("4"), [-1.0])
    report = audit(rollout(0, items=[called("a", **inline([5], [], [])), returned("a"), said("4", **with_ids)]))
    assert told(report) == [(1, "ids", "a model call has no generation_token_ids; nothing trains on this rollout")]
    assert report.num_trained_tokens == 0


@pytest.mark.parametrize(("stored", "is_told"), [([-0.10000001], False), ([-0.2], True)])
def test_ids_in_the_row_are_those_of_the_store(audit, encode, tmp_path, stored, is_told):
    TokenStore(tmp_path / "rows.tokens").append([((0, 0, 0), [turn([5], encode("4"), stored)])])
    report = audit(rollout(0, items=[said("4", **inline([5], encode("4"), [-0.1]))]))
    wrong = (1, "tokens", "the token ids or log-probs in the row are not those of the token store")
    assert told(report) == [wrong] * is_told


def test_indices_that_no_store_can_hold_name_no_tokens(audit, tmp_path):
    TokenStore(tmp_path / "rows.tokens").append([((0, 0, 0), [turn([5], [6], [-1.0])])])
    report = audit(rollout(2**63, items=[said("4")]), {**rollout(0, items=[said("4")]), "_ng_task_index": None})
    assert told(report) == []
    assert report.num_trained_tokens == 0
