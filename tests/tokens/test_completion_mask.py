"""Ids: 1 2 3 open an answer, 1 2 4 one without thinking, 9 ends one; 20 and more are what the model says."""

from renderers import RenderedTokens

from gym_bridge.tokens.completion_mask import completion_mask


def trained(ids: list[int], messages: list[int], sampled: str, *, openings: tuple[list[int], ...] = ([1, 2, 3],)) -> list[int]:
    rendered = RenderedTokens(token_ids=ids, message_indices=messages, sampled_mask=[one == "x" for one in sampled])
    mask = completion_mask(rendered, openings=openings, stops={9})
    return [token for token, trains in zip(ids, mask, strict=True) if trains]


def test_what_the_prompt_opens_does_not_train_though_the_renderer_says_that_it_was_sampled():
    assert trained([5, 1, 2, 3, 20, 9, 7], [0, 1, 1, 1, 1, 1, 1], ".xxxxx.") == [20, 9]


def test_what_the_model_writes_between_the_parts_of_an_answer_trains():
    assert trained([1, 2, 3, 20, 8, 1, 6, 21, 9], [0] * 9, "...xx..xx") == [20, 8, 1, 6, 21, 9]


def test_what_stands_behind_an_end_of_an_answer_takes_another_prompt():
    assert trained([1, 2, 3, 20, 9, 1, 6, 21, 9], [0] * 9, "...xx..xx") == [20, 9, 6, 21, 9]


def test_an_answer_without_the_prompt_s_opening_trains_from_where_it_departs_or_from_that_of_another_prompt():
    assert trained([1, 2, 6, 20, 9], [0] * 5, "...xx") == [6, 20, 9]
    assert trained([1, 2, 4, 20, 9], [0] * 5, "xxxxx", openings=([1, 2, 3], [1, 2, 4])) == [20, 9]
    assert trained([20, 9], [0] * 2, ".x") == [9]


def test_what_closes_tool_outputs_before_the_opening_does_not_train():
    assert trained([6, 1, 2, 3, 20, 9], [0] * 6, "....xx") == [20, 9]


def test_messages_of_which_nothing_was_sampled_do_not_train():
    assert trained([1, 2, 3, 20, 9], [0] * 5, ".....") == []
