"""The reasoning server: tasks of reasoning-gym, their knobs, and their scorers against answers that cheat."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import reasoning
from gym_bridge.resource_servers.registry import load_server
from gym_bridge.schemas.rollouts import FailureType
from tests.resource_servers.stage import answered, bodies, failed_rollout, posted, rolled_out, task, verified

pytest.importorskip("reasoning_gym", reason="needs the servers extra: pip install -e '.[servers]'")

from gym_bridge.resource_servers.reasoning.answers import extract_answer, may_be_scored
from gym_bridge.resource_servers.reasoning.app import ReasoningServer, Settings

pytestmark = pytest.mark.slow

HANGS = "9**9**9**9**9"


def rows(**arguments: Any) -> list[dict[str, Any]]:
    return list(ReasoningServer.tasks(**{"num_tasks": 20, "seed": 0, "split": "train", "kind": "chain_sum", **arguments}))


def made(dataset: str, answer: str | None, **metadata: Any) -> dict[str, Any]:
    """A row with an entry written by hand."""
    entry = {"question": "?", "answer": answer, "metadata": metadata}
    return task(dataset=dataset, config={}, entry=entry)


def tagged(answer: str) -> str:
    return f"Let me think.\n<answer>{answer}</answer>"


COUNTDOWN = made("countdown", "6*4 + 1", numbers=[6, 4, 1], target=25)
PUZZLE24 = made("puzzle24", "4*6*1*1", numbers=[4, 6, 1, 1])
INTEGRAL = made("simple_integration", "x**2 + C", variable="x", integrand="2*x")
SUM = made("chain_sum", "25")
STRING = made("string_insertion", "ABC")

RIGHT = [
    (SUM, tagged("25")),
    (SUM, tagged(" 25\n")),
    (SUM, "<answer>24</answer> No! <answer>25</answer>"),
    (COUNTDOWN, tagged("1 + 4 * 6")),
    (PUZZLE24, tagged("(6 * 4) / 1 * 1")),
    (INTEGRAL, tagged("C + x^2".replace("^", "**"))),
    (STRING, tagged("ABC")),
]
CHEATING = [
    (SUM, "25"),
    (SUM, "<answer>25"),
    (SUM, tagged("24")),
    (SUM, tagged("24 25 26")),
    (SUM, tagged("24 or 25")),
    (SUM, tagged("")),
    (SUM, "<answer>25</answer><answer>26</answer>"),
    (SUM, tagged("25 " * 5000)),
    (COUNTDOWN, tagged("25")),
    (COUNTDOWN, tagged("5*5")),
    (COUNTDOWN, tagged("exec(chr(49))+6*4+1")),
    (COUNTDOWN, tagged("__import__('os').system('true') + 6*4+1")),
    (COUNTDOWN, tagged("exit()+6*4+1")),
    (PUZZLE24, tagged("24*1*1*1")),
    (PUZZLE24, tagged("4*6*1")),
    (INTEGRAL, tagged("Integral(2*x, x)")),
    (INTEGRAL, tagged("integrate(2*x)")),
    (INTEGRAL, tagged("2*x")),
    (STRING, tagged("['A', 'B', 'C']")),
    (STRING, tagged("(lambda: 'ABC')()")),
    (made("binary_matrix", "0 1"), tagged("[].__class__")),
]


def test_right_answers_score_one_and_cheating_ones_zero():
    replies = verified(ReasoningServer(), [*RIGHT, *CHEATING])
    rewarded = [(text[-60:], reply["reward"]) for (_, text), reply in zip([*RIGHT, *CHEATING], replies, strict=True)]
    assert rewarded == [(text[-60:], 1.0) for _, text in RIGHT] + [(text[-60:], 0.0) for _, text in CHEATING]


def test_partial_credit_is_the_datasets_own_score_and_stands_in_the_row_either_way():
    asked = [(SUM, tagged("The answer is 25, yes")), (SUM, tagged("25"))]
    for server, rewards in ((ReasoningServer(), [0.0, 1.0]), (ReasoningServer(Settings(partial_credit=True)), [0.1, 1.0])):
        replies = verified(server, asked)
        assert [reply["reward"] for reply in replies] == rewards
        assert [reply["score"] for reply in replies] == [0.1, 1.0]


def test_an_answer_that_hangs_its_scorer_scores_zero_in_time_and_the_next_is_scored_again():
    server = ReasoningServer(Settings(deadline_s=0.7, num_workers=1))
    hung, fine = verified(server, [(INTEGRAL, tagged(HANGS)), (SUM, tagged("25"))])
    assert (hung["reward"], hung["verification_timed_out"]) == (0.0, True)
    assert (fine["reward"], fine["verification_timed_out"]) == (1.0, False)


def test_rows_that_cannot_be_scored_are_failures_and_no_rewards():
    rows_ = [
        made("countdown", "exec(chr(49))", numbers=[1], target=1),
        made("simple_integration", "x", variable="x", integrand="exec(chr(49))"),
    ]
    replies = verified(ReasoningServer(), [(row, tagged("25")) for row in rows_])
    assert [reply["_ng_failure_class"] for reply in replies] == ["judge_failed"] * 2
    assert all("the task's own answer cannot be scored" in reply["_ng_failure_judge_error"] for reply in replies)


def test_rows_of_no_dataset_or_with_what_is_none_of_its_own_are_refused_before_the_model_is_asked():
    refused = {
        "dataset": made("chain_sums", "25"),
        "config": {**SUM, "config": {"no_such_knob": 1}},
        "entry": made("puzzle24", "(8+4)*2", numbers="8842"),
    }
    for field, row in refused.items():
        for path, body in (("/seed_session", row), ("/verify", answered(row, tagged("25")))):
            status, reply = posted(ReasoningServer(), [(path, body)])[0]
            assert (status, reply["detail"][0]["loc"][:2]) == (422, ["body", field])
    assert (
        "did you mean 'chain_sum'" in posted(ReasoningServer(), [("/seed_session", refused["dataset"])])[0][1]["detail"][0]["msg"]
    )


def test_a_row_that_cannot_be_scored_fails_its_rollout():
    failed = failed_rollout(ReasoningServer(), made("no_such_dataset", "25"), tagged("25"))
    assert (failed.type, failed.status) == (FailureType.INVALID_ROW, 422)


def test_a_rollout_reaches_its_reward_through_the_collector():
    row = rows(num_tasks=1)[0]
    played = rolled_out(ReasoningServer(), row, tagged(row["entry"]["answer"]))
    assert (played.row["reward"], played.row["score"]) == (1.0, 1.0)


def test_a_seed_gives_the_same_tasks_and_the_splits_share_none_even_where_there_are_few():
    assert rows(seed=3) == rows(seed=3) != rows(seed=4)
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    train, heldout = (
        {row["entry"]["question"] for row in rows(num_tasks=60, seed=seed, split=split, **few)}
        for seed, split in ((1, "train"), (2, "heldout"))
    )
    assert len(train) == len(heldout) == 60
    assert not train & heldout


def test_knobs_are_the_fields_of_the_datasets_config_also_as_the_command_line_writes_them():
    row = rows(num_tasks=1, kind="countdown", min_numbers="3", max_numbers="3", operators='["+", "-"]')[0]
    assert row["config"] == {"min_numbers": 3, "max_numbers": 3, "operators": ("+", "-")}
    assert len(row["entry"]["metadata"]["numbers"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "count_down"}, "did you mean 'countdown'"),
        ({"kind": "composite"}, "unknown kind 'composite'"),
        ({"kind": "countdown", "max_number": 4}, "unknown knob 'max_number' of kind=countdown; did you mean 'max_numbers'"),
        ({"size": 3}, "unknown knob 'size'"),
        ({"kind": "countdown", "max_numbers": "many"}, "max_numbers='many' of kind=countdown: Input should be a valid integer"),
        ({"kind": "countdown", "max_numbers": 1}, "knobs of kind=countdown"),
        ({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "num_tasks": 5000}, "no more than about"),
    ],
)
def test_wrong_knobs_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        rows(**arguments)


def test_a_kind_is_required():
    with pytest.raises(ConfigError, match="'kind' is required"):
        ReasoningServer.tasks(num_tasks=1, seed=0, split="train")


KINDS = [
    "arc_agi",
    "countdown",
    "knights_knaves",
    "mini_sudoku",
    "n_queens",
    "polynomial_multiplication",
    "power_function",
    "rearc",
]


def test_the_answers_of_tasks_score_after_their_rows_were_written_and_read_and_those_of_the_examples():
    lines = (Path(reasoning.__file__).parent / "data" / "example.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert examples == rows(num_tasks=5)
    assert load_server("reasoning") is ReasoningServer
    tasks = [*examples, *(json.loads(json.dumps(row)) for kind in KINDS for row in rows(kind=kind, num_tasks=1))]
    replies = verified(ReasoningServer(Settings(deadline_s=20)), [(row, tagged(row["entry"]["answer"])) for row in tasks])
    assert [reply["reward"] for reply in replies] == [1.0] * (5 + len(KINDS))


@given(st.text(max_size=200) | st.text(alphabet="</answer>x ", max_size=200))
def test_any_text_has_its_last_answer_or_none(text: str):
    assert extract_answer(text + "<answer> x </answer>") == "x"
    answer = extract_answer(text)
    assert answer is None or answer in text


@given(st.text(alphabet="_.()[]'abc123 ", max_size=60))
def test_what_is_evaluated_as_a_list_calls_nothing(text: str):
    if may_be_scored("n_queens", text):
        assert "(" not in text
        assert "__" not in text


def test_no_body_makes_the_server_fail():
    sent: list[tuple[str, Any]] = []

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(["/seed_session", "/verify", "/aggregate_metrics"]), bodies(SUM))
    def collect(path: str, body: Any) -> None:
        sent.append((path, body))

    @settings(max_examples=40, deadline=None, database=None)
    @given(
        st.sampled_from([SUM, COUNTDOWN, INTEGRAL, STRING]), st.text(max_size=40) | st.text(alphabet="0123+-*/()[]x,.'", max_size=9)
    )
    def answer(row: dict[str, Any], text: str) -> None:
        sent.append(("/verify", answered(row, tagged(text))))

    collect()
    answer()
    sent += [("/verify", {**SUM, "config": config, "response": {"output": []}}) for config in ([], {"size": []}, {"a": {}})]
    statuses = {status for status, _ in posted(ReasoningServer(Settings(deadline_s=0.5)), sent)}
    assert statuses <= {200, 400, 422}
    assert 422 in statuses
