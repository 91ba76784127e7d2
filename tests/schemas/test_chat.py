import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.errors import DataError, MediaError
from gym_bridge.schemas.chat import (
    answer_text,
    chat_messages,
    chat_tools,
    flat_tools,
    num_model_calls,
    response_items,
    rollout_messages,
    wire_messages,
)

USER = {"role": "user", "content": "add 1"}


def reasoning(text):
    return {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": text}], "encrypted_content": None}


def said(text):
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "id": "msg", "status": "completed", "content": [part]}


def call(call_id, arguments="{}", **more):
    return {"type": "function_call", "call_id": call_id, "name": "add", "arguments": arguments} | more


def output(call_id, text="ok"):
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def chat_call(call_id, arguments):
    return {"id": call_id, "type": "function", "function": {"name": "add", "arguments": arguments}}


def test_a_string_is_one_user_message():
    assert chat_messages("hello") == [{"role": "user", "content": "hello"}]


def test_a_developer_is_the_system():
    assert chat_messages([{"role": "developer", "content": "be brief"}]) == [{"role": "system", "content": "be brief"}]


def test_parts_of_every_text_type_are_joined():
    parts = [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "refusal", "refusal": "no"}]
    assert chat_messages([{"type": "message", "role": "user", "content": parts}]) == [{"role": "user", "content": "abno"}]


def test_reasoning_text_and_calls_of_one_model_call_are_one_message():
    items = [USER, reasoning("think"), said("I add"), call("c1", '{"n":1}'), output("c1", "1"), said("1")]
    assert chat_messages(items) == [
        {"role": "user", "content": "add 1"},
        {
            "role": "assistant",
            "content": "I add",
            "reasoning_content": "think",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"n": 1}}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "1"},
    ]


def test_parallel_calls_are_one_message_and_their_outputs_follow():
    messages = chat_messages([call("c1"), call("c2"), output("c1"), output("c2"), call("c3")])
    assert [message["role"] for message in messages] == ["assistant", "tool", "tool", "assistant"]
    assert messages[0]["tool_calls"] == [chat_call("c1", {}), chat_call("c2", {})]
    assert messages[3]["tool_calls"] == [chat_call("c3", {})]


@pytest.mark.parametrize(
    ("items", "contents"),
    [
        ([said("a"), said("b")], ["a", "b"]),
        ([said("a"), reasoning("r"), said("b")], ["a", "b"]),
        ([call("c"), said("b")], ["", "b"]),
        ([call("c"), reasoning("r")], ["", ""]),
        ([said("a"), USER, said("b")], ["a", "add 1", "b"]),
        ([reasoning("r"), said("a"), call("c")], ["a"]),
        ([reasoning("r"), reasoning("s"), call("c")], [""]),
        ([said("a") | {"generation_token_ids": [7]}, call("c")], ["a", ""]),
        ([call("c", generation_token_ids=[7]), call("d", generation_token_ids=[8])], ["", ""]),
        ([said("a") | {"generation_token_ids": []}, call("c")], ["a"]),
        ([said("a") | {"generation_token_ids": [0]}, call("c")], ["a"]),
        ([said("a") | {"generation_token_ids": None}, call("c")], ["a"]),
    ],
)
def test_a_model_call_ends_where_it_must(items, contents):
    assert [message["content"] for message in chat_messages(items)] == contents
    assert num_model_calls(items) == len(contents) - items.count(USER)


def test_flat_tool_calls_have_no_ids_and_are_answered_in_their_order():
    items = [call("c1", '{"n": 1 }'), call("c2"), output("c1", "1"), output("c2", "2")]
    assert chat_messages(items, tool_calls="flat", arguments="string") == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"name": "add", "arguments": '{"n": 1 }'}, {"name": "add", "arguments": "{}"}],
        },
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    assert chat_messages([call("c1", '{"n": 1}')], tool_calls="flat")[0]["tool_calls"] == [{"name": "add", "arguments": {"n": 1}}]


def test_a_rollouts_chat_says_where_its_prompt_ends():
    assert rollout_messages([USER], [said("a"), USER, said("b")]) == (chat_messages([USER, said("a"), USER, said("b")]), 1)
    assert rollout_messages([], [said("a")])[1] == 0
    prompt = [USER, reasoning("r")]
    messages, num_prompt = rollout_messages(prompt, [call("c")])
    assert (num_prompt, [message["role"] for message in messages]) == (2, ["user", "assistant", "assistant"])


def test_a_tool_output_may_answer_a_call_of_the_prompt():
    messages, num_prompt = rollout_messages([USER, call("c")], [output("c"), said("a")])
    assert (num_prompt, messages[2]) == (2, {"role": "tool", "tool_call_id": "c", "content": "ok"})


IMAGE = {"type": "input_image", "image_url": "u", "detail": None}


def test_media_are_kept_as_parts_of_chat_when_asked():
    asked = {"role": "user", "content": [IMAGE, {"type": "input_text", "text": "what?"}]}
    seen = output("c") | {"output": [{"type": "input_text", "text": "screen"}, IMAGE]}
    part = {"type": "image_url", "image_url": {"url": "u"}}
    messages = chat_messages([asked, call("c"), seen, said("a cat")], media="keep")
    assert messages[0]["content"] == [part, {"type": "text", "text": "what?"}]
    assert messages[2]["content"] == [{"type": "text", "text": "screen"}, part]
    assert messages[3]["content"] == "a cat"


@pytest.mark.parametrize("kind", ["input_image", "input_audio", "input_file", "image_url", "audio_url", "video_url"])
def test_media_that_are_not_to_be_kept_are_refused_as_media(kind):
    for items in ([{"role": "user", "content": [{"type": kind}]}], [call("c"), output("c") | {"output": [{"type": kind}]}]):
        with pytest.raises(MediaError, match=f"content part of type '{kind}' is no text"):
            chat_messages(items)


def test_a_part_of_no_known_type_is_no_media():
    with pytest.raises(DataError) as caught:
        chat_messages([{"role": "user", "content": [{"type": "computer_screenshot"}]}], media="refuse")
    assert not isinstance(caught.value, MediaError)


def test_arguments_stay_the_models_own_string_when_asked():
    message = chat_messages([call("c1", '{"n": 1 }')], arguments="string")[0]
    assert message.get("tool_calls") == [chat_call("c1", '{"n": 1 }')]
    assert chat_messages([call("c1", "{oops")], arguments="string")[0].get("tool_calls") == [chat_call("c1", "{oops")]


@pytest.mark.parametrize("arguments", ["{oops", "", "[1]", "null", '"x"'])
def test_arguments_that_are_no_object_are_refused(arguments):
    with pytest.raises(DataError, match="arguments of call 'c1' are no JSON object: "):
        chat_messages([call("c1", arguments)])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (output("call_9"), "tool output 'call_9' answers no tool call of this rollout"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "content part of type 'input_image' is no text"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "content part of type 'input_audio' is no text"),
        ({"role": "user", "content": ["bare"]}, "content part of type 'str' is no text"),
        ({"role": "user", "content": 3}, "content is of type int; expected a string or a list of parts"),
        ({"role": "bot", "content": "x"}, "message with role 'bot'; expected one of developer, system, user, assistant"),
        ({"type": "web_search_call"}, "item of type 'web_search_call' has no chat form"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "'call_id' of a function_call is None; expected a string"),
    ],
)
def test_an_item_without_a_chat_form_is_named(item, message):
    with pytest.raises(DataError) as caught:
        chat_messages([item])
    assert str(caught.value) == message


def test_only_an_assistant_message_is_an_answer():
    assert answer_text(said("42")) == "42"
    assert answer_text({"role": "assistant", "content": "42"}) == "42"
    assert [answer_text(item) for item in (USER, call("c"), output("c"), reasoning("r"))] == [None] * 4


def test_an_assistant_message_becomes_responses_items():
    message = {"role": "assistant", "content": "I add", "reasoning_content": "think", "tool_calls": [chat_call("c1", {"n": 1})]}
    part = {"type": "output_text", "text": "I add", "annotations": []}
    assert response_items(message, id_suffix="t0") == [
        {"type": "reasoning", "id": "rs_t0", "summary": [{"type": "summary_text", "text": "think"}]},
        {"type": "message", "id": "msg_t0", "role": "assistant", "status": "completed", "content": [part]},
        {
            "type": "function_call",
            "id": "fc_t0_0",
            "call_id": "c1",
            "name": "add",
            "arguments": '{"n":1}',
            "status": "completed",
        },
    ]


FLAT = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
NESTED = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}}


def test_tools_nest_and_flatten_from_either_form():
    assert chat_tools([FLAT, NESTED]) == [NESTED, NESTED]
    assert flat_tools([FLAT, NESTED]) == [FLAT, FLAT]


def test_null_fields_of_a_tool_are_left_out():
    assert chat_tools([{"type": "function", "name": "f", "description": None, "strict": None}]) == [
        {"type": "function", "function": {"name": "f"}}
    ]


@pytest.mark.parametrize("tool", [{"type": "web_search"}, {"type": "function"}, {}])
def test_a_tool_that_is_no_function_is_refused(tool):
    with pytest.raises(DataError, match="expected a"):
        chat_tools([tool])


TEXT = st.text(alphabet='ab "\\\n{}\u00e9\u2028\U0001f600\x00', max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT
ARGUMENTS = st.dictionaries(TEXT, SCALARS | st.lists(SCALARS, max_size=2), max_size=3)


@st.composite
def chats(draw):
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(0, 4))):
        if not (messages and messages[-1]["role"] == "tool" and draw(st.booleans())):
            messages.append({"role": "user", "content": draw(TEXT)})
        message = {"role": "assistant", "content": draw(TEXT)}
        if draw(st.booleans()):
            message["reasoning_content"] = draw(TEXT.filter(bool))
        ids = [f"call_{turn}_{number}" for number in range(draw(st.integers(0, 3)))]
        if ids:
            message["tool_calls"] = [chat_call(call_id, draw(ARGUMENTS)) for call_id in ids]
        messages.append(message)
        messages += [{"role": "tool", "tool_call_id": call_id, "content": draw(TEXT)} for call_id in ids]
    return messages


@given(chats())
def test_a_chat_survives_the_way_to_items_and_back(messages):
    items = [item for number, message in enumerate(messages) for item in response_items(message, id_suffix=str(number))]
    assert chat_messages(items) == chat_messages(items, media="keep") == messages
    assert num_model_calls(items) == sum(message["role"] == "assistant" for message in messages)


@given(chats(), st.integers(0, 8))
def test_every_tool_output_has_its_call_wherever_the_prompt_ends(messages, cut):
    items = [item for number, message in enumerate(messages) for item in response_items(message, id_suffix=str(number))]
    made, num_prompt = rollout_messages(items[:cut], items[cut:])
    assert made[:num_prompt] == chat_messages(items[:cut])
    called = set()
    for message in made:
        called |= {one["id"] for one in message.get("tool_calls", ())}
        assert message["role"] != "tool" or message["tool_call_id"] in called


KEYS = st.sampled_from(["type", "role", "content", "text", "summary", "call_id", "name", "arguments", "output", "refusal"])
WORDS = ["message", "reasoning", "function_call", "function_call_output", "assistant", "user", "output_text", "refusal", "{}", "{"]
VALUES = st.recursive(
    st.sampled_from([*WORDS, None, 1, True]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=5), max_size=4))
def test_any_items_have_a_chat_or_are_refused(items):
    try:
        messages = chat_messages(items)
    except DataError:
        return
    assert all(isinstance(message["content"], str) for message in messages)


@given(chats())
def test_on_the_wire_a_chat_of_text_is_the_same_with_arguments_as_strings(messages):
    items = [item for number, message in enumerate(messages) for item in response_items(message, id_suffix=str(number))]
    assert wire_messages(items) == chat_messages(items, arguments="string")


def test_on_the_wire_parts_stay_parts_and_a_developer_may_stay_one():
    image = {"type": "input_image", "image_url": "u"}
    refused = said("I can't") | {"content": [{"type": "refusal", "refusal": "no"}]}
    items = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [image]}, refused]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    assert wire_messages(items, developer="developer") == messages
    assert wire_messages(items)[0]["role"] == "system"
    assert wire_messages("hello") == [{"role": "user", "content": "hello"}]


def test_an_image_that_a_tool_gave_has_no_form_on_the_wire():
    output_with_image = {**output("c"), "output": [{"type": "input_image", "image_url": "u"}]}
    with pytest.raises(DataError, match="content part of type 'input_image' is no text"):
        wire_messages([call("c"), output_with_image])


def test_a_refusal_of_a_chat_is_a_part_of_its_answer():
    (item,) = response_items({"role": "assistant", "content": "", "refusal": "no"})
    assert item["content"] == [{"type": "refusal", "refusal": "no"}]


def test_a_whole_number_that_no_64_bits_hold_is_refused_as_an_object_and_kept_as_text():
    arguments = '{"n":123456789012345678901234567890}'
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": arguments}
    with pytest.raises(DataError, match="beyond 64 bits; keep their text with --arguments string"):
        chat_messages([call])
    assert chat_messages([call], arguments="string")[0]["tool_calls"][0]["function"]["arguments"] == arguments
    held = {**call, "arguments": '{"n":9223372036854775807,"s":"12345678901234567890","x":0.12345678901234567890}'}
    assert chat_messages([held])[0]["tool_calls"][0]["function"]["arguments"]["n"] == 9223372036854775807
