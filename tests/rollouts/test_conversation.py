"""The chat of a turn request, for endpoints that render text themselves."""

import pytest

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.conversation import conversation
from tests.rollouts.model_stage import asking


def test_instructions_are_the_first_message():
    assert conversation(asking({"role": "user", "content": "hi"}, instructions="Answer.")) == [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_what_is_no_text_is_refused_by_name(kind: str):
    with pytest.raises(DataError, match=f"content part of type '{kind}' is no text"):
        conversation(asking({"role": "user", "content": [{"type": kind}]}))
