"""The audit as a whole: kinds of rows, counting, severities, what is shown. ids: 1 <|im_start|>, 2 <|im_end|>."""

import pytest

from gym_bridge.config import validate
from gym_bridge.errors import ConfigError
from gym_bridge.tokens.audit.findings import MAX_NOTES, MAX_PROBLEMS, SEVERITIES, ShownRow
from gym_bridge.tokens.audit.settings import AuditSettings
from gym_bridge.tokens.auditor import audit_file
from tests.tokens.audit_stage import ANSWER, CHAT, USER, audit_rows, calling, output, rollout, said, told

TEXTS = {"input": "a", "output": "b"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
RANKED = {
    "context": [USER],
    "completions": [{"rank": 1, "completion": [{"role": "assistant", "content": "5"}]}, {"rank": 0, "completion": [ANSWER]}],
}
TASK = {"responses_create_params": {"input": [USER], "tools": [{"type": "function", "name": "add"}]}}


@pytest.fixture
def audit(renderer, tmp_path):
    return lambda *rows, **settings: audit_rows(tmp_path, renderer, *rows, **settings)


def problems(report):
    assert report.num_problems == len(report.problems)
    return [(one.line, one.message) for one in report.problems]


def test_a_clean_sft_file_is_counted_and_shown(audit, renderer):
    report = audit(CHAT, {"messages": [USER, calling("a", "b"), output("b"), output("a"), ANSWER]}, show=1)
    assert (report.kind, report.num_rows, report.num_problems) == ("sft", 2, 0)
    assert [one.marked() for one in report.shown] == [
        "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n[4<|im_end|>]\n"
    ]
    length = len(renderer.render_ids(CHAT["messages"]))
    alone = audit(CHAT)
    assert (alone.num_tokens, alone.longest, alone.num_trained_tokens) == (length, length, 2)
    assert report.longest == report.num_tokens - length > length
    assert alone.lengths.model_dump() == {"p50": length, "p95": length, "p99": length, "max": length}


@pytest.mark.parametrize(
    ("row", "kind", "trained"),
    [
        (TEXTS, "response", "[b<|im_end|>]"),
        (PAIR, "dpo", "[b<|im_end|>]"),
        ({**PAIR, "prompt": [USER]}, "dpo", "2+2?<|im_end|>"),
        (RANKED, "preference", "[4<|im_end|>]"),
        (TASK, "tasks", "<|im_start|>assistant\n"),
        (rollout(0, items=[said("4")]), "rollouts", "assistant\n4<|im_end|>\n"),
        (
            {"reward": 1.0, "output": [said("4")], "responses_create_params": TASK["responses_create_params"]},
            "rollouts",
            "4<|im_end|>",
        ),
        (CHAT, "sft", "[4<|im_end|>]"),
    ],
)
def test_each_kind_is_told_by_its_columns_and_rendered(audit, row, kind, trained):
    report = audit(row, show=1)
    assert (report.kind, report.num_problems) == (kind, 0)
    assert trained in report.shown[0].marked()
    assert (report.num_trained_tokens > 0) == (kind not in ("tasks", "rollouts"))


def test_a_pair_is_two_sequences_and_the_longer_one_counts(audit, renderer):
    report = audit({**PAIR, "rejected": "c c c"}, show=1)
    prompt = [{"role": "user", "content": "a"}]
    lengths = [len(renderer.render_ids([*prompt, {"role": "assistant", "content": one}])) for one in ("b", "c c c")]
    assert (report.num_tokens, report.longest) == (sum(lengths), lengths[1])
    first, second = report.shown[0].marked().split("\n\n")
    assert "[b<|im_end|>]" in first
    assert "[c c c<|im_end|>]" in second


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (TEXTS, {"input": "a", "output": " \n"}, r"column 'output' is ' \n'; expected text"),
        (TEXTS, {"input": "a"}, "column 'output' is None; expected text"),
        (PAIR, {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are equal"),
        (PAIR, {"prompt": 1, "chosen": "b", "rejected": "c"}, "column 'prompt' is 1; expected text"),
        (PAIR, {"prompt": [], "chosen": "b", "rejected": "c"}, "expected a list of messages, found list"),
        (RANKED, {**RANKED, "completions": RANKED["completions"][:1]}, "'completions' is no list of two objects"),
        (
            RANKED,
            {**RANKED, "completions": [{**one, "rank": 1} for one in RANKED["completions"]]},
            "the completions have the ranks 1 and 1; expected two different integers",
        ),
        (
            RANKED,
            {**RANKED, "completions": [{"rank": rank, "completion": [ANSWER]} for rank in (0, 1)]},
            "the two completions are equal",
        ),
        (RANKED, {**RANKED, "context": None}, "expected a list of messages, found NoneType"),
        (TASK, {"responses_create_params": {}}, "responses_create_params.input is neither a text nor a list of items"),
        (TASK, {"_hf_placeholder": {"row": 3}, "dataset": "d"}, "an unresolved _hf_placeholder; run gym-bridge prep on the file"),
        (TASK, CHAT, "the row is of kind sft; the first row is of kind tasks"),
        (rollout(0, items=[said("4")]), {"a": 1}, "the row is of kind unknown; the first row is of kind rollouts"),
        (rollout(0, items=[said("4")]), rollout(1, items="x"), "'output' is of type str; expected a list of objects"),
        (CHAT, {"messages": None}, "expected the columns 'messages' and 'tools', found messages"),
        (CHAT, TEXTS, "expected the columns 'messages' and 'tools', found input, output"),
        (CHAT, {**CHAT, "tools": 5}, "'tools' is no list of objects"),
        (CHAT, {**CHAT, "gym_bridge": "x"}, "'gym_bridge' is no object, or its 'num_prompt_messages' no number of messages"),
        (
            CHAT,
            {**CHAT, "gym_bridge": {"num_prompt_messages": -1}},
            "'gym_bridge' is no object, or its 'num_prompt_messages' no number of messages",
        ),
        (CHAT, {"messages": [USER, {**ANSWER, "tool_calls": ["a"]}]}, "message 1: 'tool_calls' is no list of objects"),
        (CHAT, {"messages": ["hello"]}, "every message needs a 'role'"),
    ],
)
def test_wrong_columns_and_mixed_kinds_are_problems(audit, good, bad, message):
    report = audit(good, bad)
    assert [(line, check, text) for line, check, text in told(report) if check == "columns"] == [(2, "columns", message)]
    assert report.num_problems == 1


def test_a_task_may_leave_the_first_word_to_its_environment_but_an_image_has_no_tokens(audit):
    first = {"responses_create_params": {"input": []}}
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}
    report = audit(TASK, first, {"responses_create_params": {"input": [image]}})
    assert told(report) == [(3, "chat", "content part of type 'input_image' is no text")]


def test_a_line_that_is_no_json_is_a_problem_too(audit):
    report = audit(b"{oops", CHAT, b"[]")
    assert (report.kind, report.num_rows) == ("sft", 3)
    assert [line for line, _ in problems(report)] == [1, 3]
    assert report.problems[1].message == "expected a JSON object, found list"


def test_a_row_nested_too_deeply_is_a_problem_and_no_crash(audit):
    deep = b'{"messages":[{"role":"user","content":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}]}"
    assert [(line, check) for line, check, _ in told(audit(CHAT, deep))] == [(2, "json")]


def test_rewards_must_be_finite_numbers(audit):
    report = audit(
        *(rollout(task, reward) for task, reward in enumerate([1.0, 0, None, "1", True])),
        b'{"response":{},"responses_create_params":{}}',
    )
    assert report.kind == "rollouts"
    assert problems(report) == [
        (3, "reward None is no finite number"),
        (4, "reward '1' is no finite number"),
        (5, "reward True is no finite number"),
        (6, "reward None is no finite number"),
    ]


def test_failed_masked_and_absent_rollouts_are_told_and_nothing_else_of_them(audit):
    failed = rollout(1, None, gym_bridge={"failure": {"type": "timeout_exceeded"}})
    report = audit(rollout(0, items=[said("4")]), failed, rollout(2, None, mask_sample=True), b"<PLACEHOLDER ROW>", rollout(3))
    assert told(report) == [
        (2, "failure", "the rollout is a failure; no dataset takes it"),
        (3, "failure", "the rollout is masked by its environment; no dataset takes it"),
        (4, "failure", "the line stands for a row left out"),
        (5, "failure", "the row holds no output"),
    ]
    assert report.num_problems == 0


def test_a_row_that_stands_in_the_file_already_is_told_with_its_first_line(audit):
    again = {"gym_bridge": {"source": "b"}, **{key: CHAT[key] for key in reversed(CHAT)}}
    report = audit(CHAT, {"messages": [USER, ANSWER]}, again)
    assert told(report) == [(3, "duplicate", "the row of line 1 once more")]
    assert report.num_problems == 0


def test_all_problems_are_counted_and_a_hundred_told(audit):
    report = audit(CHAT, *[{"messages": [USER]}] * (MAX_PROBLEMS + 7))
    assert (report.num_rows, report.num_problems, len(report.problems)) == (MAX_PROBLEMS + 8, MAX_PROBLEMS + 7, MAX_PROBLEMS)
    assert (report.counts, len(report.notes)) == ({"duplicate": MAX_PROBLEMS + 6, "mask": MAX_PROBLEMS + 7}, MAX_NOTES)


def test_a_note_can_be_made_a_problem_and_a_problem_a_note(audit):
    bad = {"messages": [USER]}
    report = audit(CHAT, CHAT, bad, fail_on=("duplicate",), allow=("mask",))
    assert [(one.line, one.check) for one in report.problems] == [(2, "duplicate")]
    assert [(one.line, one.check) for one in report.notes] == [(3, "mask")]
    assert (report.num_problems, report.num_notes) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fail_on": ["leek"]}, r"fail_on='leek': no such check; did you mean 'leak'|fail_on='leek'.*leak"),
        ({"fail_on": ["leak"], "allow": ["leak"]}, "'leak' stands in fail_on and in allow"),
        ({"ngram": 7}, "ngram=7"),
        ({"max_length": 0}, "max_length=0"),
        ({"show": -1}, "show=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(AuditSettings, settings)


def test_messages_are_one_short_line_without_control_characters(audit):
    report = audit(TEXTS, {"input": "a", "output": ["\x1b[31m\n" * 400]})
    (problem,) = report.problems
    assert problem.message.isprintable()
    assert len(problem.message) < 450


def test_shown_tokens_are_whole_characters_and_no_control_characters(audit):
    (shown,) = audit({"messages": [USER, {"role": "assistant", "content": "é\x1b[31m"}]}, show=1).shown
    assert ("é", True) in shown.tokens
    assert ("\\x1b", True) in shown.tokens
    assert isinstance(shown, ShownRow)
    assert shown.marked().endswith("[é\\x1b[31m<|im_end|>]\n")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]\n", b'{"a": 1}\n', b"<PLACEHOLDER ROW>\n"])
def test_a_file_of_no_known_kind_is_refused(renderer, tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"rows\.jsonl:?1?: "):
        audit_file(path, renderer, AuditSettings())


def test_a_directory_and_a_missing_file_are_refused(renderer, tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(ConfigError, match=str(path)):
            audit_file(path, renderer, AuditSettings())


def test_the_table_of_the_manual_names_every_check(pytestconfig):
    manual = (pytestconfig.rootpath / "docs" / "audit.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in manual.splitlines() if line.startswith("| `")]
    assert {name.strip(" `"): severity.strip() for name, severity in rows} == SEVERITIES
