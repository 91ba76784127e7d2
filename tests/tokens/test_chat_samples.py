import pytest

from gym_bridge.errors import DataError
from gym_bridge.tokens.chat_samples import chat_sample

CHAT = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


def trained(renderer, row):
    """The runs of trained tokens, as text."""
    sample = chat_sample(row, renderer)
    runs, before = [], False
    for token, trains in zip(sample.token_ids.tolist(), sample.train_mask.tolist(), strict=True):
        if trains:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = trains
    return [renderer.tokenizer.decode(run) for run in runs]


def test_every_assistant_message_trains(renderer):
    assert trained(renderer, {"messages": CHAT}) == ["2<|im_end|>", "4<|im_end|>"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, ["2<|im_end|>", "4<|im_end|>"]), (1, ["2<|im_end|>", "4<|im_end|>"]), (2, ["4<|im_end|>"]), (3, ["4<|im_end|>"])],
)
def test_assistant_messages_that_the_task_brought_do_not_train(renderer, count, expected):
    assert trained(renderer, {"messages": CHAT, "gym_bridge": {"num_prompt_messages": count}}) == expected


def test_a_sequence_of_an_offline_row_has_no_sampled_logprobs_and_advantage_one(renderer):
    sample = chat_sample({"messages": CHAT}, renderer)
    assert (sample.rollout_logprobs, sample.advantage, sample.num_trained) == (None, 1.0, 4)
    assert sample.token_ids.tolist() == renderer.render_ids(CHAT)


def test_tools_of_the_row_are_rendered(renderer):
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert chat_sample({"messages": CHAT, "tools": tools}, renderer).token_ids.tolist() == renderer.render_ids(CHAT, tools=tools)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "answer": "b"}, "expected the columns 'messages' and 'tools', found answer, prompt"),
        ({}, "found none"),
        ({"messages": []}, "expected the columns"),
        ({"messages": ["hello"]}, "every message needs a 'role'"),
        ({"messages": [{"content": "hello"}]}, "every message needs a 'role'"),
        ({"messages": CHAT[:1]}, "no assistant message to train on"),
        ({"messages": CHAT, "gym_bridge": {"num_prompt_messages": 4}}, "no assistant message to train on"),
    ],
)
def test_a_row_that_cannot_train_is_a_data_error(renderer, row, message):
    with pytest.raises(DataError, match=message):
        chat_sample(row, renderer)


@pytest.mark.parametrize(("column", "expected"), [("weight", 0.5), ("gym_bridge.reward", 2.0)])
def test_a_row_has_the_weight_of_its_column(renderer, column, expected):
    row = {"messages": CHAT, "weight": 0.5, "gym_bridge": {"reward": 2}}
    assert chat_sample(row, renderer, weight=column).weight == expected
    assert chat_sample(row, renderer).weight == 1.0


@pytest.mark.parametrize("value", [None, "1", True, -0.1, float("nan")])
def test_a_weight_that_is_no_number_of_at_least_0_is_refused(renderer, value):
    with pytest.raises(DataError, match=r"the row's weight 'gym_bridge\.reward' is .*; expected a number of at least 0"):
        chat_sample({"messages": CHAT, "gym_bridge": {"reward": value}}, renderer, weight="gym_bridge.reward")
