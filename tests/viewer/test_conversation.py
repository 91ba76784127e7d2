"""A rollout as a conversation."""

from pathlib import Path
from typing import Any

import pytest

from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.io.rollout_reader import PLACEHOLDER, view_row
from gym_bridge.viewer.conversation import asked, content_text, conversation_of, last_words
from tests.viewer.stage import answered, called, row, said

FIXTURES = sorted((Path(__file__).parents[2] / "fixtures" / "nemo_gym").glob("*.jsonl"))


def told(one: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(entry.kind, entry.title, entry.text, entry.turn) for entry in conversation_of(view_row(one))]


def test_calls_stand_with_their_outputs_and_turns_are_counted():
    rollout = row(
        2,
        0,
        1.0,
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "think"}]},
        called("a", "add", a=1),
        called("b", "sub"),
        answered("b", "no"),
        answered("a", '{"sum":3}'),
        "3",
        num_turns=2,
    )
    assert told(rollout) == [
        ("user", "user", "What is 2+2?", None),
        ("reasoning", "reasoning", "think", 0),
        ("call", "add", '{\n  "a": 1\n}', 0),
        ("call", "sub", "{}", 0),
        ("output", "sub", "no", 0),
        ("output", "add", '{\n  "sum": 3\n}', 0),
        ("assistant", "assistant", "3", 1),
    ]


def test_latencies_and_versions_stand_at_the_first_piece_of_their_turn():
    waits = [["seed", 0.1], ["model", 1.5], ["tools", 0.25], ["model", 2.5], ["verify", 0.5]]
    rollout = row(0, 0, 1.0, "so", called("a", "add"), answered("a", "3"), "3", num_turns=2, policy_versions=[4, 5], waits_s=waits)
    found = conversation_of(view_row(rollout))
    assert [(entry.seconds, entry.version) for entry in found] == [
        (None, None),
        (1.5, 4),
        (None, None),
        (0.25, None),
        (2.5, 5),
    ]
    rollout["gym_bridge"]["waits_s"] = [["model", 1.0]]  # of one call, where there were two: nothing is guessed
    assert {entry.seconds for entry in conversation_of(view_row(rollout))} == {None}


def test_an_output_with_an_error_is_a_failed_call():
    outputs = ['{"error": "Unknown tool: x"}', '{"error": null}', "error", '{"broken', '["error"]']
    items = [item for n, text in enumerate(outputs) for item in (called(str(n), "t"), answered(str(n), text))]
    found = [entry.failed for entry in conversation_of(view_row(row(0, 0, 1.0, *items))) if entry.kind == "output"]
    assert found == [True, False, False, False, False]


def test_parts_that_are_no_text_are_named_and_texts_are_joined():
    parts = [
        {"type": "input_text", "text": "look: "},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"type": "refusal", "refusal": "no"},
        7,
    ]
    text = content_text(parts)
    assert text.startswith("look: [input_image: ")
    assert text.endswith("that are no text][refusal] no7")
    assert (content_text(None), content_text("x")) == ("", "x")


def test_a_table_shows_what_was_asked_and_what_was_said_last():
    rollout = row(0, 0, 1.0, said("first"), called("a", "add", x=1), answered("a", "2"), prompt="the question")
    view = view_row(rollout)
    assert asked(view) == "the question"
    assert last_words(view) == 'add({\n  "x": 1\n})'


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_every_real_rollout_has_a_conversation(path: Path):
    if path.read_bytes().strip() == PLACEHOLDER:
        pytest.skip("the file ships a placeholder alone")
    for _, one in read_jsonl(path):
        view = view_row(one)
        found = conversation_of(view)
        assert len(found) == len(view.items)
        assert all(entry.text.strip() for entry in found if entry.kind == "call")
        assert {entry.kind for entry in found} <= {"system", "user", "assistant", "reasoning", "call", "output"}
