"""Answers whose worth is known beforehand, made of what task rows tell."""

import asyncio
from typing import Any

import pytest

from gym_bridge.errors import DataError
from gym_bridge.resource_servers.registry import written_answers
from gym_bridge.rollouts.known_answers import FORMS, KnownAnswer, ScriptedEndpoint, known_answers
from gym_bridge.schemas.seams import TurnRequest
from gym_bridge.schemas.tokens import SampleKey


def task(**fields: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": [{"role": "user", "content": "What is 2 + 2?"}]}, **fields}


def said(answer: KnownAnswer) -> list[str]:
    return [item["content"][0]["text"] if item["type"] == "message" else item["name"] for turn in answer.turns for item in turn]


def of_kind(answers: list[KnownAnswer], kind: str) -> list[list[str]]:
    return [said(one) for one in answers if one.kind == kind]


def test_an_expected_answer_is_right_in_every_form_and_that_of_another_task_wrong():
    found = known_answers(task(expected_answer="4"), others=[task(expected_answer="4"), task(expected_answer="7")])
    assert of_kind(found, "good") == [[form.format("4")] for form in FORMS]
    assert ["\\boxed{4}"] in of_kind(found, "good")
    assert of_kind(found, "bad") == [[form.format("7")] for form in FORMS]
    assert ["The answer is 7 or 4."] in of_kind(found, "adversarial")


def test_calls_of_a_ground_truth_are_made_one_a_turn_and_left_out_to_fool():
    calls = [{"name": "add", "arguments": '{"a": 1}'}, {"name": "mul", "arguments": {"b": 2}}]
    found = known_answers(task(expected_answer=4, ground_truth=calls), others=[task(ground_truth=[{"name": "sub"}])])
    assert of_kind(found, "good") == [["add", "mul", "4"]]
    good = next(one for one in found if one.kind == "good")
    assert [len(turn) for turn in good.turns] == [1, 1, 1]
    assert good.turns[1][0]["arguments"] == '{"b":2}'
    assert of_kind(found, "bad") == [["sub", "Done."]]
    assert ["4"] in of_kind(found, "adversarial")


def test_what_fools_verifiers_is_always_tried():
    about = {one.about for one in known_answers(task()) if one.kind == "adversarial"}
    assert about >= {"nothing", "the question again", "a claim to be right", "a verdict of its own", "every number", "many words"}
    assert known_answers(task()) == [one for one in known_answers(task()) if one.kind == "adversarial"]


def test_answers_of_the_row_stand_over_those_of_its_server_and_these_over_the_expected_one():
    row = task(expected_answer="4", known_answers={"good": ["four"]})
    assert of_kind(known_answers(row, written={"good": ["IV"]}), "good") == [["four"]]
    assert of_kind(known_answers(task(expected_answer="4"), written={"good": ["IV"]}), "good") == [["IV"]]


def test_an_answer_of_the_row_may_be_output_items_and_ends_a_turn_with_each_call():
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]}
    (good, *_) = known_answers(task(known_answers={"good": [[call, text]]}))
    assert good.turns == ((call,), (text,))


@pytest.mark.parametrize("wrong", [["4"], {"god": ["4"]}, {"good": [4]}, {"bad": [[4]]}])
def test_known_answers_that_are_none_are_refused(wrong: Any):
    with pytest.raises(DataError, match="known_answers"):
        known_answers(task(known_answers=wrong))


def test_the_endpoint_says_a_script_turn_by_turn_and_then_nothing():
    (good, *_) = known_answers(task(expected_answer="4", ground_truth=[{"name": "add", "arguments": "{}"}]))
    endpoint = ScriptedEndpoint({3: [good]})

    async def turn(number: int) -> Any:
        request = TurnRequest(items=(), tools=(), params={}, key=SampleKey(seed=0, task_index=3, rollout_index=0, turn=number))
        return (await endpoint.turn(request)).items

    assert [asyncio.run(turn(number))[0]["type"] for number in range(3)] == ["function_call", "message", "message"]
    assert asyncio.run(turn(2))[0]["content"][0]["text"] == ""


def test_several_answers_play_the_rollouts_of_a_task_in_turn():
    good = [one for one in known_answers(task(expected_answer="4")) if one.kind == "good"]
    endpoint = ScriptedEndpoint({0: good})

    async def text(rollout: int) -> str:
        key = SampleKey(seed=0, task_index=0, rollout_index=rollout, turn=0)
        return (await endpoint.turn(TurnRequest(items=(), tools=(), params={}, key=key))).items[0]["content"][0]["text"]

    assert [asyncio.run(text(number)) for number in (0, 2, len(FORMS))] == ["4", "\\boxed{4}", "4"]


def test_a_list_of_texts_is_an_answer_of_as_many_turns():
    (good, *_) = known_answers(task(known_answers={"good": [["50", "25"]]}))
    assert said(good) == ["50", "25"]
    assert [len(turn) for turn in good.turns] == [1, 1]


@pytest.mark.parametrize(
    ("server", "row"),
    [
        ("number_game", {"low": 1, "high": 10, "target": 50, "max_guesses": 5}),
        ("arithmetic", {"operands": [1, 2, 3], "expected_answer": "6"}),
        ("grid_world", {"map": "@G", "max_moves": 3}),
        ("office", {"world": "none"}),
    ],
)
def test_a_server_is_not_asked_for_answers_to_what_is_no_task_of_it(server: str, row: dict[str, Any]):
    assert written_answers(server, task(**row)) == {}
