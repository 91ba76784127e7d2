"""The calculator: its chains, its tape, and what is rewarded."""

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import calculator
from gym_bridge.resource_servers.calculator.app import CalculatorServer, CalculatorTask
from gym_bridge.resource_servers.calculator.programs import MAX_NUMBER, Step, calculate, results
from gym_bridge.resource_servers.sessions import Sessions
from tests.resource_servers.stage import Client, Request, Row, answered, bodies, posted, rolled_out, rows, with_clients
from tests.rollouts.stage import called, in_order, said, turn

CHAIN: Row = {
    "responses_create_params": {"input": "go", "tools": CalculatorServer.tools()},
    "start": "12345678",
    "steps": [
        {"operation": "multiply", "operand": "87654321"},
        {"operation": "remainder", "operand": "99999989"},
        {"operation": "power_modulo", "operand": "3", "modulus": "10000019"},
    ],
}
MULTIPLY: Request = ("/multiply", {"a": "12345678", "b": "87654321"})
REMAINDER: Request = ("/remainder", {"a": "A", "b": "99999989"})
POWER: Request = ("/power_modulo", {"base": "B", "exponent": "3", "modulus": "10000019"})
PRODUCT = "1082152022374638"
REST = "41411369"  # 1082152022374638 - 10821521 * 99999989
ANSWER = "7281677"  # 41411369 ** 3 - 7101628315761828 * 10000019


def reward(requests: list[Request], *, row: Row = CHAIN) -> float:
    """The reward of the last request, a /verify, after seeding `row`."""
    return posted(CalculatorServer(), [("/seed_session", row), *requests])[-1][1]["reward"]


def test_the_tools_calculate_and_later_calls_may_name_earlier_results():
    replies = posted(CalculatorServer(), [("/seed_session", CHAIN), MULTIPLY, REMAINDER, POWER])
    assert replies[1:3] == [(200, {"result": PRODUCT, "letter": "A"}), (200, {"result": REST, "letter": "B"})]
    assert replies[3] == (200, {"result": ANSWER, "letter": "C"})


@pytest.mark.parametrize(
    ("path", "arguments", "reply"),
    [
        ("/add", {"a": "99999999999999999999", "b": 1}, {"result": "100000000000000000000", "letter": "A"}),
        ("/subtract", {"a": "5", "b": "-7"}, {"result": "12", "letter": "A"}),
        ("/quotient", {"a": "-7", "b": "2"}, {"result": "-4", "letter": "A"}),
        ("/remainder", {"a": "-7", "b": "2"}, {"result": "1", "letter": "A"}),
        ("/add", {"a": "-0", "b": "0"}, {"result": "0", "letter": "A"}),
        ("/quotient", {"a": "7", "b": "0"}, {"error": "division by zero"}),
        ("/add", {"a": "A", "b": "1"}, {"error": "there is no result A yet"}),
        ("/power_modulo", {"base": "2", "exponent": "-1", "modulus": "5"}, {"error": "the exponent is negative"}),
        ("/power_modulo", {"base": "2", "exponent": "1", "modulus": "0"}, {"error": "the modulus is not positive"}),
        ("/multiply", {"a": "9" * 150, "b": "9" * 150}, {"error": "the result has more than 200 digits"}),
        ("/power_modulo", {"base": "9" * 200, "exponent": "9" * 200, "modulus": "7"}, {"result": "1", "letter": "A"}),
    ],
)
def test_what_a_tool_cannot_do_it_tells_the_model(path: str, arguments: dict[str, Any], reply: dict[str, str]):
    assert posted(CalculatorServer(), [("/seed_session", CHAIN), (path, arguments)])[1] == (200, reply)


@pytest.mark.parametrize(
    "wrong", ["", "1.5", "1e9", "９", "٣", "1 ", "1\n", "a", "AA", "--1", "9" * 201, True, 1.5, None, [], 10**400]
)
def test_operands_that_are_no_numbers_are_refused(wrong: Any):
    status, reply = posted(CalculatorServer(), [("/seed_session", CHAIN), ("/add", {"a": wrong, "b": "1"})])[1]
    assert status == 422
    assert reply["detail"][0]["loc"] == ["body", "a"]


def test_the_tape_is_bounded_and_says_so():
    replies = posted(CalculatorServer(), [("/seed_session", CHAIN), *[("/add", {"a": "1", "b": "1"})] * 27])
    assert [reply.get("letter") for _, reply in replies[1:]] == [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", None]
    assert "full" in replies[-1][1]["error"]


DONE = [MULTIPLY, REMAINDER, POWER]
DIGRESSION: Request = ("/add", {"a": "1", "b": "1"})
REMAINDER_IN_DIGITS: Request = ("/remainder", {"a": PRODUCT, "b": "99999989"})
POWER_IN_NUMBERS: Request = ("/power_modulo", {"base": int(REST), "exponent": 3, "modulus": 10000019})
FORGED: Row = {**CHAIN, "start": "1", "steps": [{"operation": "add", "operand": "1"}]}


@pytest.mark.parametrize(
    "requests",
    [
        [*DONE, ("/verify", answered(CHAIN, ANSWER))],
        [*DONE, ("/verify", answered(CHAIN, f"**{ANSWER}**."))],
        [*DONE, ("/verify", answered(CHAIN, f"C = {ANSWER}"))],
        [*DONE, ("/verify", answered(CHAIN, f"{int(ANSWER):,}"))],
        [DIGRESSION, MULTIPLY, REMAINDER_IN_DIGITS, POWER_IN_NUMBERS, ("/verify", answered(CHAIN, ANSWER))],
        [*DONE, ("/verify", answered(CHAIN, ANSWER, said("I begin."), called("multiply", {})))],
    ],
)
def test_the_last_result_got_by_the_tools_is_rewarded(requests: list[Request]):
    assert reward(requests) == 1.0


QUESTION = "Start with 12345678. Then do the following"


@pytest.mark.parametrize(
    "requests",
    [
        [("/verify", answered(CHAIN, ANSWER))],
        [("/add", {"a": ANSWER, "b": "0"}), ("/verify", answered(CHAIN, ANSWER))],
        [MULTIPLY, POWER, ("/verify", answered(CHAIN, ANSWER))],
        [MULTIPLY, REMAINDER, ("/verify", answered(CHAIN, ANSWER))],
        [*DONE, ("/verify", answered(CHAIN, PRODUCT))],
        [*DONE, ("/verify", answered(CHAIN, f"{PRODUCT} {REST} {ANSWER}"))],
        [*DONE, ("/verify", answered(CHAIN, f"{ANSWER} or 7"))],
        [*DONE, ("/verify", answered(CHAIN, f"7 = {ANSWER}"))],
        [*DONE, ("/verify", answered(CHAIN, f"-{ANSWER}"))],
        [*DONE, ("/verify", answered(CHAIN, "-0"))],
        [*DONE, ("/verify", answered(CHAIN, "C"))],
        [*DONE, ("/verify", answered(CHAIN, QUESTION))],
        [*DONE, ("/verify", answered(CHAIN, json.dumps(CHAIN["steps"])))],
        [*DONE, ("/verify", answered(CHAIN, f"{ANSWER}." + "0" * 400 + "1"))],
        [*DONE, ("/verify", answered(CHAIN, "9" * 5000))],
        [*DONE, ("/verify", answered(CHAIN, ANSWER.translate({ord("0") + digit: chr(0xFF10 + digit) for digit in range(10)})))],
        [*DONE, ("/verify", answered(CHAIN, "\u200b".join(ANSWER)))],
        [*DONE, ("/verify", {**CHAIN, "response": {"output": [said(ANSWER), called("add", {})]}})],
        [*DONE, ("/verify", {**CHAIN, "response": {"output": [{"role": "user", "content": ANSWER}]}})],
        [*DONE, ("/verify", {**CHAIN, "response": {"output": []}})],
        [*DONE, ("/seed_session", CHAIN), ("/verify", answered(CHAIN, ANSWER))],
        [*DONE, ("/verify", answered({**CHAIN, "expected_answer": "7"}, "7"))],
        [DIGRESSION, ("/verify", answered(FORGED, "2"))],
    ],
)
def test_a_guess_a_quotation_or_a_forged_row_is_not_rewarded(requests: list[Request]):
    assert reward(requests) == 0.0


def test_a_verified_row_tells_how_far_the_chain_was_done():
    replies = posted(CalculatorServer(), [("/seed_session", CHAIN), MULTIPLY, REMAINDER, ("/verify", answered(CHAIN, REST))])
    assert replies[-1][1] == {**answered(CHAIN, REST), "extracted_answer": REST, "num_steps_done": 2, "reward": 0.0}


@pytest.mark.parametrize("operation", ["quotient", "remainder"])
def test_a_chain_that_divides_by_zero_is_refused(operation: str):
    row = {**CHAIN, "steps": [CHAIN["steps"][0], {"operation": operation, "operand": "0"}]}
    for requests in ([("/seed_session", row)], [("/seed_session", CHAIN), ("/verify", answered(row, "0"))]):
        status, reply = posted(CalculatorServer(), requests)[-1]
        message = "the chain cannot be calculated: division by zero"
        assert (status, reply) == (422, {"detail": [{"loc": ["body", "steps"], "msg": message, "type": "value_error"}]})


def test_without_a_session_nothing_is_verified():
    assert posted(CalculatorServer(), [("/verify", answered(CHAIN, ANSWER))])[0][0] == 400


@pytest.mark.parametrize(("depth", "digits"), [(2, 6), (3, 8), (16, 40)])
def test_a_chain_has_the_depth_asked_for_and_no_result_short_enough_to_guess(depth: int, digits: int):
    for row in rows(CalculatorServer, depth=depth, digits=digits):
        chain = results(int(row["start"]), CalculatorTask.model_validate(row).steps)
        assert len(chain) == depth
        assert min(len(str(value)) for value in chain) >= digits - 1
        assert row["expected_answer"] == str(chain[-1])
        assert row["expected_answer"] not in json.dumps(row["responses_create_params"])


def test_every_step_needs_the_one_before():
    row = rows(CalculatorServer, num_tasks=1, depth=6)[0]
    task = CalculatorTask.model_validate(row)
    assert results(int(row["start"]) + 1, task.steps)[-1] != results(int(row["start"]), task.steps)[-1]


def test_a_seed_gives_the_same_tasks_again_and_the_splits_share_none():
    def asked(**arguments: Any) -> list[str]:
        return [row["responses_create_params"]["input"][1]["content"] for row in rows(CalculatorServer, num_tasks=300, **arguments)]

    assert asked(seed=3) == asked(seed=3)
    assert asked(seed=3) != asked(seed=4)
    train, heldout = asked(seed=1), asked(seed=1, split="heldout")
    assert len({*train, *heldout}) == 600


@pytest.mark.parametrize(
    ("knobs", "words"), [({"depth": 1}, "depth"), ({"digits": 41}, "digits"), ({"dept": 3}, "did you mean 'depth'")]
)
def test_wrong_knobs_are_refused(knobs: dict[str, int], words: str):
    with pytest.raises(ConfigError, match=words):
        rows(CalculatorServer, **knobs)


def test_the_examples_are_five_tasks_that_the_ground_truth_solves():
    lines = Path(calculator.__file__).with_name("data").joinpath("example.jsonl").read_text().splitlines()
    assert len(lines) == 5
    for row in map(json.loads, lines):
        calls = [(f"/{call['name']}", json.loads(call["arguments"])) for call in row["ground_truth"]]
        assert reward([*calls, ("/verify", answered(row, row["expected_answer"]))], row=row) == 1.0


def test_a_whole_rollout_is_played_by_our_collector():
    row = rows(CalculatorServer, num_tasks=1, depth=3)[0]
    turns = [turn(called(call["name"], call["arguments"], f"c{n}")) for n, call in enumerate(row["ground_truth"])]
    ended = rolled_out(CalculatorServer(), row, in_order(*turns, turn(said(row["expected_answer"]))))
    assert (ended.row["reward"], ended.row["num_steps_done"]) == (1.0, 3)
    outputs = [json.loads(item["output"]) for item in ended.row["response"]["output"] if item["type"] == "function_call_output"]
    assert [output["letter"] for output in outputs] == ["A", "B", "C"]
    assert outputs[-1]["result"] == row["expected_answer"]
    unaided = rolled_out(CalculatorServer(), row, in_order(turn(said(row["expected_answer"]))))
    assert unaided.row["reward"] == 0.0


def test_two_hundred_sessions_with_interleaved_calls_keep_their_tapes_apart():
    async def talk(clients: list[Client]) -> list[Any]:
        chains = [{**CHAIN, "start": str(1000 + n), "steps": [{"operation": "multiply", "operand": "10"}] * 2} for n in range(200)]
        await asyncio.gather(*(client.post("/seed_session", chain) for client, chain in zip(clients, chains, strict=True)))
        first = [client.post("/multiply", {"a": str(1000 + n), "b": "10"}) for n, client in enumerate(clients)]
        assert {reply["letter"] for _, reply in await asyncio.gather(*first)} == {"A"}
        second = await asyncio.gather(*(client.post("/multiply", {"a": "A", "b": "10"}) for client in reversed(clients)))
        assert [reply["result"] for _, reply in second] == [str((1000 + n) * 100) for n in reversed(range(200))]
        answers = [answered(chain, str(int(chain["start"]) * 100)) for chain in chains]
        return await asyncio.gather(*(client.post("/verify", body) for client, body in zip(clients, answers, strict=True)))

    verified = with_clients(CalculatorServer(), 200, talk)
    assert [reply["reward"] for _, reply in verified] == [1.0] * 200


def test_a_full_session_is_small():
    async def fill(sessions: Sessions[Any], count: int) -> None:
        server, task = CalculatorServer(), CalculatorTask.model_validate(CHAIN)
        for number in range(count):
            session = await server.seed(task)
            sessions.open(session)
            for _ in range(26):
                await server.add(session, str(10**199 + number), "1")

    tracemalloc.start()
    sessions: Sessions[Any] = Sessions()
    asyncio.run(fill(sessions, 400))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(sessions) * 20_000 < 500 * 2**20


@given(st.sampled_from(["add", "subtract", "multiply", "quotient", "remainder"]), st.integers(), st.integers())
def test_what_is_calculated_is_exact_or_refused(operation: Any, a: int, b: int):
    try:
        result = calculate(operation, a, b)
    except ValueError:
        assert b == 0
        return
    assert abs(result) < MAX_NUMBER
    if operation in ("quotient", "remainder"):
        assert calculate("quotient", a, b) * b + calculate("remainder", a, b) == a
    else:
        assert result == {"add": a + b, "subtract": a - b, "multiply": a * b}[operation]


def test_numbers_stand_as_text_in_a_row_for_readers_of_64_bits():
    step = Step.model_validate({"operation": "add", "operand": "9" * 30})
    assert step.model_dump(exclude_none=True) == {"operation": "add", "operand": "9" * 30}


paths = st.sampled_from(
    ["/seed_session", "/verify", "/aggregate_metrics", *(f"/{one['name']}" for one in CalculatorServer.tools())]
)
operands = st.fixed_dictionaries({"a": st.text(max_size=5) | st.integers(), "b": st.sampled_from(["A", "0", "-3", "Z", "9" * 200])})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(paths, bodies(CHAIN, "a", "b", "base", "exponent", "modulus") | operands), min_size=1, max_size=12))
def test_no_body_makes_the_server_fail_or_hang(requests: list[Request]):
    replies = posted(CalculatorServer(), [("/seed_session", CHAIN), *requests])
    assert {status for status, _ in replies} <= {200, 400, 422}
