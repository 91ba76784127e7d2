import pytest

from gym_bridge.errors import DataError
from gym_bridge.tokens.chat_samples import answer_samples, chat_samples

CHAT = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


def the_one(samples):
    """The sample of a row that has just one."""
    (sample,) = samples
    return sample


def trained(renderer, row, **options):
    """The runs of trained tokens, as text."""
    sample = the_one(chat_samples(row, renderer, **options))
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
    sample = the_one(chat_samples({"messages": CHAT}, renderer))
    assert (sample.rollout_logprobs, sample.advantage, sample.num_trained) == (None, 1.0, 4)
    assert sample.token_ids.tolist() == renderer.render_ids(CHAT)


def test_tools_of_the_row_are_rendered(renderer):
    tools = [{"type": "function", "function": {"name": "add"}}]
    sample = the_one(chat_samples({"messages": CHAT, "tools": tools}, renderer))
    assert sample.token_ids.tolist() == renderer.render_ids(CHAT, tools=tools)


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
        ({"messages": CHAT, "gym_bridge": {"num_prompt_messages": "4"}}, "'num_prompt_messages' no number of messages"),
        ({"messages": CHAT, "gym_bridge": [4]}, "'gym_bridge' is no object"),
        ({"messages": CHAT, "tools": "add"}, "'tools' is no list of objects"),
        ({"messages": [*CHAT[:3], {"role": "assistant", "content": "4", "tool_calls": 1}]}, "message 3: 'tool_calls' is no list"),
    ],
)
def test_a_row_that_cannot_train_is_a_data_error(renderer, row, message):
    with pytest.raises(DataError, match=message):
        chat_samples(row, renderer)


@pytest.mark.parametrize(("column", "expected"), [("weight", 0.5), ("gym_bridge.reward", 2.0)])
def test_a_row_has_the_weight_of_its_column(renderer, column, expected):
    row = {"messages": CHAT, "weight": 0.5, "gym_bridge": {"reward": 2}}
    assert the_one(chat_samples(row, renderer, weight=column)).weight == expected
    assert the_one(chat_samples(row, renderer)).weight == 1.0


@pytest.mark.parametrize("value", [None, "1", True, -0.1, float("nan")])
def test_a_weight_that_is_no_number_of_at_least_0_is_refused(renderer, value):
    with pytest.raises(DataError, match=r"the row's weight 'gym_bridge\.reward' is .*; expected a number of at least 0"):
        chat_samples({"messages": CHAT, "gym_bridge": {"reward": value}}, renderer, weight="gym_bridge.reward")


def test_of_a_final_answer_nothing_before_it_trains(renderer):
    assert trained(renderer, {"messages": CHAT}, train_on="final") == ["4<|im_end|>"]
    assert trained(renderer, {"messages": [*CHAT, {"role": "user", "content": "5"}]}, train_on="final") == ["4<|im_end|>"]
    with pytest.raises(DataError, match="no assistant message to train on"):  # the last answer is one that the task brought
        chat_samples({"messages": CHAT, "gym_bridge": {"num_prompt_messages": 4}}, renderer, train_on="final")


def test_what_nothing_answers_is_left_out(renderer):
    sample = the_one(chat_samples({"messages": [*CHAT, {"role": "user", "content": "and now?"}]}, renderer))
    assert sample.token_ids.tolist() == renderer.render_ids(CHAT)


def test_an_input_is_asked_by_a_user_and_its_output_trains(renderer):
    sample = the_one(answer_samples({"input": "2+2?", "output": "4", "w": 3}, renderer, weight="w"))
    asked = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert sample.token_ids.tolist() == renderer.render_ids(asked)
    assert renderer.tokenizer.decode(sample.token_ids[sample.train_mask].tolist()) == "4<|im_end|>"
    assert sample.weight == 3.0
    with pytest.raises(DataError, match="column 'input' holds list; expected a text"):
        answer_samples({"input": [], "output": "4"}, renderer)


def test_one_rendering_holds_what_several_renderings_of_a_stable_template_do(renderer):
    whole, parts = renderer.render(CHAT), the_one(chat_samples({"messages": CHAT}, renderer))
    assert whole.token_ids == parts.token_ids.tolist()
    assert whole.sampled_mask == parts.train_mask.tolist()
