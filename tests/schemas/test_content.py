"""Parts of messages, in the forms of Responses and of chat."""

from typing import Any

import pytest

from gym_bridge.errors import DataError
from gym_bridge.schemas.content import answer_parts, chat_content, text_of

TEXT = {"type": "input_text", "text": "a"}
IMAGE = {"type": "input_image", "image_url": "u"}
SOUND = {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,UklG"}}


@pytest.mark.parametrize("content", [None, "", "ab", [TEXT, {"type": "output_text", "text": "b"}], [TEXT, {"text": "b"}], []])
def test_what_is_text_alone_stays_a_string(content: Any):
    assert chat_content(content) == text_of(content) == ("ab" if content and len(content) == 2 else "")


@pytest.mark.parametrize(
    ("part", "made"),
    [
        (TEXT, {"type": "text", "text": "a"}),
        ({"type": "refusal", "refusal": "no"}, {"type": "refusal", "refusal": "no"}),
        (IMAGE, {"type": "image_url", "image_url": {"url": "u"}}),
        ({**IMAGE, "detail": "low", "file_id": None}, {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}),
        ({**IMAGE, "uuid": "x"}, {"type": "image_url", "image_url": {"url": "u"}, "uuid": "x"}),
        ({"type": "input_audio", "input_audio": {"data": "d"}}, {"type": "input_audio", "input_audio": {"data": "d"}}),
        (SOUND, SOUND),
        ({"text": "a"}, {"type": "text", "text": "a"}),
        (
            {"type": "input_file", "file_id": "f", "file_data": None, "filename": "n"},
            {"type": "file", "file": {"file_id": "f", "filename": "n"}},
        ),
    ],
)
def test_a_part_has_its_form_in_chat(part: Any, made: Any):
    assert chat_content([IMAGE, part])[1] == made


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "input_image"}, "'image_url' of a content part of type 'input_image' is None; expected a string"),
        ({"type": "input_image", "file_id": "f"}, "'file_id' of a content part of type 'input_image' has no chat form"),
        ({"type": "input_file", "file_url": "u"}, "'file_url' of a content part of type 'input_file' has no chat form"),
        ({"type": "computer_screenshot"}, "content part of type 'computer_screenshot' has no chat form"),
        ({"type": ["input_image"]}, "content part of type ['input_image'] has no chat form"),
        ("bare", "content part of type 'str' has no chat form"),
    ],
)
def test_what_chat_has_no_form_for_is_named(part: Any, told: str):
    with pytest.raises(DataError) as raised:
        chat_content([part])
    assert str(raised.value) == told


def test_an_answer_has_its_text_in_one_part_and_every_refusal_in_its_own():
    text = {"type": "output_text", "text": "ab", "annotations": []}
    refusal = {"type": "refusal", "refusal": "no"}
    assert answer_parts("ab") == [text]
    assert answer_parts("ab", "no") == [text, refusal]
    assert answer_parts([{"type": "text", "text": "a"}, refusal, {"type": "text", "text": "b"}]) == [text, refusal]
    assert answer_parts(None) == answer_parts("") == answer_parts([]) == []


def test_an_answer_that_is_neither_text_nor_refusal_is_named():
    with pytest.raises(DataError, match="content part of type 'input_image' is no text"):
        answer_parts([IMAGE])
