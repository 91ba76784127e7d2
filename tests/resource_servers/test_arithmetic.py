"""The arithmetic server: its splits, its reading of replies, and its two kinds of tasks over real HTTP."""

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import arithmetic
from gym_bridge.resource_servers.answers import extract_answer
from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer
from gym_bridge.resource_servers.registry import load_server
from gym_bridge.resource_servers.serving import serve


def rows(**arguments: Any) -> list[dict[str, Any]]:
    return list(ArithmeticServer.tasks(**{"num_tasks": 200, "seed": 0, "split": "train", **arguments}))


def pairs(**arguments: Any) -> list[tuple[int, ...]]:
    """Operands of each row, the smaller first."""
    return [tuple(sorted(row["operands"])) for row in rows(**arguments)]


def played(requests: list[tuple[str, Any]], *, server: ArithmeticServer | None = None) -> list[tuple[int, Any]]:
    """Status and JSON of POSTs to a real server, one after the other with one cookie jar."""

    async def run() -> list[tuple[int, Any]]:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(server or ArithmeticServer(), port=0, on_ready=ready.set_result))
        try:
            url, replies = await ready, []
            async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
                for path, body in requests:
                    async with http.post(url + path, json=body, timeout=aiohttp.ClientTimeout(20)) as reply:
                        replies.append((reply.status, await reply.json()))
            return replies
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    return asyncio.run(run())


def answered(row: dict[str, Any], text: str) -> dict[str, Any]:
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}
    return {**row, "response": {"output": [message]}}


def test_a_row_asks_for_a_sum_after_two_worked_examples():
    row = rows(num_tasks=1)[0]
    a, b = row["operands"]
    assert 10 <= a <= 99
    assert 10 <= b <= 99
    assert row == {
        "responses_create_params": {
            "input": [
                {"role": "system", "content": "You are a calculator. Answer with one number."},
                {"role": "user", "content": "What is 12 + 25?"},
                {"role": "assistant", "content": "12 + 25 = 37"},
                {"role": "user", "content": "What is 48 + 31?"},
                {"role": "assistant", "content": "48 + 31 = 79"},
                {"role": "user", "content": f"What is {a} + {b}?"},
            ]
        },
        "expected_answer": str(a + b),
        "operands": [a, b],
        "split": "train",
    }


def test_the_two_splits_share_no_operands_whatever_their_seeds_and_hold_all_sums_but_the_examples():
    every = {(a, b) for a in range(10, 100) for b in range(a, 100)} - {(12, 25), (31, 48)}
    assert len(every) == 4093
    train = pairs(num_tasks=2011, seed=1, split="train")
    heldout = pairs(num_tasks=2082, seed=2, split="heldout")
    assert sorted(train + heldout) == sorted(every)
    assert set(pairs(num_tasks=2011, seed=9, split="train")) == set(train)


def test_a_sum_is_asked_in_either_order_and_once():
    asked = [tuple(row["operands"]) for row in rows(num_tasks=2000)]
    assert len({tuple(sorted(pair)) for pair in asked}) == 2000
    assert 800 < sum(a < b for a, b in asked) < 1200


def test_a_tool_row_shows_two_worked_calls_and_their_outputs():
    row = rows(num_tasks=1, kind="tool")[0]
    a, b = row["operands"]
    assert row["responses_create_params"]["input"] == [
        {"role": "system", "content": "You are a calculator. Add with the tool, then answer with one number."},
        {"role": "user", "content": "What is 1234 + 5678?"},
        {"type": "function_call", "call_id": "example_0", "name": "add", "arguments": '{"a": 1234, "b": 5678}'},
        {"type": "function_call_output", "call_id": "example_0", "output": '{"sum": 6912}'},
        {"role": "assistant", "content": "1234 + 5678 = 6912"},
        {"role": "user", "content": "What is 9012 + 3456?"},
        {"type": "function_call", "call_id": "example_1", "name": "add", "arguments": '{"a": 9012, "b": 3456}'},
        {"type": "function_call_output", "call_id": "example_1", "output": '{"sum": 12468}'},
        {"role": "assistant", "content": "9012 + 3456 = 12468"},
        {"role": "user", "content": f"What is {a} + {b}?"},
    ]


def test_tool_tasks_keep_their_splits_apart_too():
    train, heldout = (
        set(pairs(num_tasks=3000, seed=seed, split=split, kind="tool")) for seed, split in ((1, "train"), (2, "heldout"))
    )
    assert len(train) == len(heldout) == 3000
    assert not train & heldout
    assert all(1000 <= one <= 9999 for pair in train for one in pair)


def test_a_seed_gives_the_same_tasks_again_and_another_seed_another_order():
    assert rows(seed=5) == rows(seed=5)
    assert len({json.dumps(pairs(seed=seed)) for seed in (-1, 0, 1, 2)}) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 2012}, "num_tasks=2012: there are 2011 different sums in split train"),
        ({"num_tasks": 2083, "split": "heldout"}, "there are 2082 different sums in split heldout"),
        ({"num_tasks": 1_000_001, "kind": "tool"}, "there are 1000000 tool tasks"),
        ({"num_tasks": -1}, "expected 0 or more"),
        ({"split": "held_out"}, "did you mean 'heldout'"),
        ({"kinds": "sum"}, "did you mean 'kind'"),
        ({"max_addend": 5}, "unknown key 'max_addend'"),
        ({"kind": "product"}, "'sum' or 'tool'"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_row(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        ArithmeticServer.tasks(**{"num_tasks": 1, "seed": 0, "split": "train", **arguments})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("49", "49"),
        (" 49.\n", "49"),
        ("49.0", "49"),
        ("49.00", "49"),
        ("**49**", "49"),
        ("_49_", "49"),
        ("$49$", "49"),
        (r"\boxed{49}", "49"),
        ("+49", "49"),
        ("The answer is 49, yes, 49!", "49"),
        ("47 + 2 = 49", "49"),
        ("47+2=49", "49"),
        ("47 + 2 = 49. So the answer is 49.", "49"),
        ("The answer is 49, for 47 + 2 = 49", "49"),
        ("2 + 47 = 47 + 2 = 49", "49"),
        ("50", "50"),
        ("49.5", "49.5"),
        ("-49", "-49"),
        ("−49", "-49"),
        ("1,234", "1234"),
        ("12,345,678.50", "12345678.5"),
        ("0", "0"),
        ("", None),
        ("forty-nine", None),
        ("NaN", None),
        ("49 or 50", None),
        ("49 50", None),
        ("49, 50", None),
        ("49,50", None),
        ("48/49", None),
        ("40-49", None),
        ("4 9", None),
        (" ".join(str(number) for number in range(1, 100)), None),
        ("47 + 2 is 49", None),
        ("47 + 2 = 48 = 49", None),
        ("x = 48, y = 49", None),
        ("49 = 47 + 2", None),
        ("47 + 2 =", None),
        ("49 =", None),
        ("=", None),
        ("049", None),
        (".49", None),
        ("49th", None),
        ("x49", None),
        ("49%", None),
        ("4.9e1", None),
        ("1e400", None),
        ("0x31", None),
        ("49_0", None),
        ("49.0.1", None),
        ("--49", None),
        ("٤٩", None),
        ("４９", None),
        ("49 or ５０", None),
        ("49½", None),
        ("49²", None),
        ("4\u200b9", None),
        ("9" * 400, "9" * 400),
        ("9" * 100_000, None),
        ("49 " * 100_000, None),
    ],
)
def test_a_reply_is_read_as_one_number_or_not_at_all(text: str, answer: str | None):
    assert extract_answer(text, (47, 2)) == answer


def test_an_operand_before_the_equals_sign_must_be_the_tasks_own():
    assert extract_answer("46 + 3 = 49", (47, 2)) is None
    assert extract_answer("46 + 3 = 49", (46, 3)) == "49"


def test_a_copied_example_answers_no_other_question():
    assert extract_answer("81 + 44 = 125", (81, 44)) == "125"
    assert extract_answer("12 + 25 = 37", (81, 44)) is None
    row = next(row for row in rows(num_tasks=2011) if sum(row["operands"]) not in (37, 79))
    texts = ["12 + 25 = 37", "48 + 31 = 79", "{} + {} = {}".format(*row["operands"], row["expected_answer"])]
    verified = [reply for _, reply in played([("/verify", answered(row, text)) for text in texts])]
    assert [one["reward"] for one in verified] == [0.0, 0.0, 1.0]


@given(st.text(max_size=200) | st.text(alphabet="0123456789.,-=+ e_%", max_size=200))
def test_what_is_read_is_a_finite_decimal_that_stands_in_the_text(text: str):
    answer = extract_answer(text, (47, 2))
    if answer is not None:
        assert math.isfinite(float(answer))
        assert answer.lstrip("-").split(".")[0] in text.replace(",", "")


def test_reading_a_huge_reply_takes_no_time():
    started = time.perf_counter()
    for text in ("9" * 8_000_000, "9," * 4_000_000, "=" * 8_000_000, "1 " * 4_999, "-" * 10_000, "9_" * 5_000, "1,111" * 2_000):
        extract_answer(text, (47, 2))
    assert time.perf_counter() - started < 1.0


def test_a_sum_is_rewarded_for_the_right_number_alone():
    row = rows(num_tasks=1)[0]
    right = row["expected_answer"]
    texts = [right, f"{right}.0", f"{sum(row['operands']) + 1}", f"{right} or 7", "", "9" * 1_000_000]
    verified = [reply for _, reply in played([("/verify", answered(row, text)) for text in texts])]
    assert [(one["reward"], one["extracted_answer"]) for one in verified] == [
        (1.0, right),
        (1.0, right),
        (0.0, str(int(right) + 1)),
        (0.0, None),
        (0.0, None),
        (0.0, None),
    ]
    assert verified[0] == {**answered(row, right), "extracted_answer": right, "reward": 1.0}


def test_a_tool_task_is_rewarded_when_its_own_session_called_the_tool_and_the_answer_is_right():
    row, other = rows(num_tasks=2, kind="tool")
    (a, b), right = row["operands"], row["expected_answer"]
    (call,) = row["ground_truth"]
    assert (call["name"], json.loads(call["arguments"])) == ("add", {"a": a, "b": b})
    assert row["responses_create_params"]["tools"] == ArithmeticServer.tools()
    seed, verify = ("/seed_session", row), ("/verify", answered(row, right))
    add = ("/add", {"a": a, "b": b})
    replies = played(
        [
            *[seed, add, verify, ("/verify", answered(row, "7"))],
            *[seed, verify],
            *[seed, ("/add", {"a": a, "b": b + 1}), verify],
            *[seed, ("/add", {"a": b, "b": a}), verify],
            *[seed, add, ("/verify", answered(other, other["expected_answer"]))],
        ]
    )
    assert replies[1] == (200, {"sum": int(right)})
    assert [reply["reward"] for _, reply in replies if "reward" in reply] == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def test_a_tool_task_without_a_session_is_refused_and_not_given_zero():
    row = rows(num_tasks=1, kind="tool")[0]
    assert played([("/verify", answered(row, row["expected_answer"]))])[0][0] == 400


def test_shuffled_rewards_say_nothing_of_the_answer():
    row = rows(num_tasks=1)[0]
    right, wrong = answered(row, row["expected_answer"]), answered(row, "7")
    replies = played(
        [("/verify", wrong), ("/verify", right), *[("/verify", wrong)] * 40], server=ArithmeticServer(shuffle_rewards=True)
    )
    rewards = [reply["reward"] for _, reply in replies]
    assert rewards[1] == 0.0
    assert 1.0 in rewards[2:]


def test_the_example_tasks_are_tasks_that_the_server_takes():
    lines = Path(arithmetic.__file__).parent.joinpath("data", "example.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert [bool(row.get("ground_truth")) for row in examples] == [False, False, False, True, True]
    for row in examples:
        call = ("/add", dict(zip("ab", row["operands"], strict=True)))
        seeded, _, verified = played([("/seed_session", row), call, ("/verify", answered(row, str(sum(row["operands"]))))])
        assert seeded == (200, {})
        assert verified[1]["reward"] == 1.0


def test_the_registry_knows_the_server_by_name():
    assert load_server("arithmetic") is ArithmeticServer
    with pytest.raises(ConfigError, match="did you mean 'arithmetic'"):
        load_server("arithmetics")


numbers = st.integers() | st.integers(min_value=10**300) | st.floats(allow_nan=False) | st.text(max_size=9) | st.just("9" * 4300)
requests = st.one_of(
    st.tuples(st.just("/add"), st.dictionaries(st.sampled_from("abc"), numbers)),
    st.tuples(st.just("/seed_session"), st.dictionaries(st.sampled_from(["operands", "expected_answer", "ground_truth"]), numbers)),
    st.tuples(st.just("/verify"), st.builds(lambda text: answered(rows(num_tasks=1)[0], text), st.text())),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(requests, max_size=10))
def test_no_arguments_make_the_server_fail(sent: list[tuple[str, Any]]):
    seeded = [("/seed_session", rows(num_tasks=1)[0]), ("/add", {"a": 1, "b": "2"})]
    assert {status for status, _ in played([*seeded, *sent])} <= {200, 400, 422}
