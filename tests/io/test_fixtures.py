"""The rollouts that the repository holds, read one by one."""

from pathlib import Path

import orjson
import pytest

from gym_bridge.errors import MediaError
from gym_bridge.io.rollout_reader import view_row
from gym_bridge.io.row_decoder import RowDecoder
from gym_bridge.schemas.chat import answer_text, chat_messages, rollout_messages

FIXTURES = Path(__file__).parents[2] / "fixtures"
FILES = sorted((FIXTURES / "nemo_gym").glob("*.jsonl"))
DROPPED = {"genrm_compare": "not_a_rollout", "jailbreak_detection": "not_a_rollout"}
TURNS = {
    "aviary": [2, 4],
    "example_multi_turn_gymnasium": [2, 3],
    "gymnasium": [0],
    "openenv": [3, 2],
    "ruler": [1],
    "user_guide": [2, 2, 2, 1, 1],
    "workplace_assistant": [3],
}
"""Model calls of each line, counted by eye."""


def views(name):
    decoder = RowDecoder()
    return [view_row(decoder.decode(line)) for line in (FIXTURES / "nemo_gym" / f"{name}.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_is_a_rollout_with_a_chat_or_is_known_for_none(path):
    for view in views(path.stem):
        assert view.drop_reason() == DROPPED.get(path.stem)
        messages, num_prompt = rollout_messages(view.context, view.output or (), media="keep")
        assert len(messages) >= num_prompt > 0 or path.stem == "jailbreak_detection"
        calls = [call["id"] for message in messages for call in message.get("tool_calls", ())]
        assert {message["tool_call_id"] for message in messages if message["role"] == "tool"} <= set(calls)
        assert [message["role"] for message in messages].count("assistant") >= view.num_turns


@pytest.mark.parametrize("name", TURNS)
def test_model_calls_are_counted_as_by_eye(name):
    assert [view.num_turns for view in views(name)] == TURNS[name]


def test_ten_servers_and_the_guide_are_among_them():
    assert len(FILES) >= 11
    assert all(f"`{path.name}`" in (FIXTURES / "nemo_gym" / "README.md").read_text() for path in FILES)


@pytest.mark.parametrize("name", ["circle_click", "vlm_eval_kit"])
def test_images_are_kept_or_refused_as_media(name):
    for view in views(name):
        asked = chat_messages(view.context, media="keep")[-1]["content"]
        assert [part["type"] for part in asked] == ["image_url", "text"]
        with pytest.raises(MediaError, match="content part of type 'input_image' is no text"):
            chat_messages(view.context)


def test_a_rollout_that_was_cut_off_is_truncated():
    assert [view.truncated for view in views("ruler")] == [True]
    assert not any(view.truncated for view in views("workplace_assistant"))


@pytest.mark.parametrize("path", sorted((FIXTURES / "expected").glob("*.sft.jsonl")), ids=lambda path: path.name)
def test_chats_are_those_that_were_checked_by_eye(path):
    rollouts = views(path.name.split(".")[0])
    for row in map(orjson.loads, path.read_bytes().splitlines()):
        view = rollouts[int(row["gym_bridge"]["source"].rsplit(":", 1)[1]) - 1]
        messages, num_prompt = rollout_messages(view.context, view.output, media="keep")
        kept = len(row["messages"])  # a row ends with the model's last message
        assert (messages[:kept], num_prompt) == (row["messages"], row["gym_bridge"]["num_prompt_messages"])
        assert all(message["role"] == "tool" for message in messages[kept:])
        assert orjson.loads(orjson.dumps(view.chat_tools())) == row.get("tools")
        assert (view.task, view.reward) == (row["gym_bridge"]["task"], row["gym_bridge"]["reward"])


@pytest.mark.parametrize("path", sorted((FIXTURES / "expected").glob("*.response.jsonl")), ids=lambda path: path.name)
def test_answers_are_those_that_were_checked_by_eye(path):
    rollouts = views(path.name.split(".")[0])
    for row in map(orjson.loads, path.read_bytes().splitlines()):
        view = rollouts[int(row["gym_bridge"]["source"].rsplit(":", 1)[1]) - 1]
        assert row["input"] == "\n\n".join(message["content"] for message in chat_messages(view.context))
        assert row["output"] == answer_text(view.output[-1])
        assert (view.task, view.reward) == (row["gym_bridge"]["task"], row["gym_bridge"]["reward"])
