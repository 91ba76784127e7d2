"""What is read off the words of a file: overlap with evaluations, leaked answers, lengths."""

import pytest

from gym_bridge.errors import ConfigError, DataError
from tests.tokens.audit_stage import ANSWER, USER, audit_rows, rollout, said, told, write_rows

QUESTION = "A train leaves Paris at nine and runs at 80 km/h; when does it reach Lyon, which is 465 km away?"
BHUTAN = "The capital of Bhutan is Thimphu"
SHORT = "Name the capital of the country of Bhutan."  # 8 words
RANKED = ((1, QUESTION), (0, "4"))
INSTRUCTION = "Think step by step and put the final answer in a box at the very end. "  # 16 words


@pytest.fixture
def audit(renderer, tmp_path):
    return lambda *rows, **settings: audit_rows(tmp_path, renderer, *rows, **settings)


@pytest.fixture
def against(tmp_path):
    def write(*rows, name="eval.jsonl"):
        return (write_rows(tmp_path / name, rows),)

    return write


def task(prompt, **more):
    return {"responses_create_params": {"input": [{"role": "user", "content": prompt}]}, **more}


def overlaps(report):
    return [(line, message) for line, check, message in told(report) if check == "overlap"]


def test_thirteen_words_of_an_evaluation_text_are_found_in_spite_of_case_and_marks(audit, against, tmp_path):
    paths = against(task("Something else that is long enough to be compared with what is trained on here."), task(QUESTION))
    words = QUESTION.upper().replace(";", " -").split()
    twelve, thirteen = " ".join(words[:12]), " ".join(words[:14])  # of which one is a mark
    report = audit(
        {"input": f"x y {twelve} z", "output": "b"},
        {"input": "a", "output": f"x y {thirteen} z."},
        {"input": QUESTION, "output": QUESTION},
        against=paths,
    )
    assert overlaps(report) == [
        (2, f"78% of its words stand in {paths[0]}:2"),  # 14, for km/h is two, of 18 with the answer
        (3, f"100% of its words stand in {paths[0]}:2"),
    ]
    (one,) = report.overlaps
    assert one.model_dump() == {"path": str(paths[0]), "num_texts": 2, "num_too_short": 0, "num_found": 1, "num_rows": 2}
    assert report.num_problems == 2


@pytest.mark.parametrize(
    ("row", "is_found"),
    [
        ({"input": "a", "output": QUESTION}, True),
        ({"prompt": "a", "chosen": "b", "rejected": QUESTION}, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}, ANSWER]}, True),
        ({"messages": [{"role": "system", "content": QUESTION}, ANSWER]}, False),
        (task(QUESTION), True),
        (rollout(0, prompt=QUESTION, items=[said("4")]), True),
        (
            {
                "context": [USER],
                "completions": [{"rank": rank, "completion": [{**ANSWER, "content": said}]} for rank, said in RANKED],
            },
            True,
        ),
    ],
)
def test_every_text_but_the_systems_is_compared(audit, against, row, is_found):
    assert bool(overlaps(audit(row, against=against(task(QUESTION))))) == is_found


@pytest.mark.parametrize(
    "row",
    [
        {"input": QUESTION, "output": "b"},
        {"messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": QUESTION}, ANSWER]},
        {"prompt": QUESTION, "chosen": "b", "rejected": "c"},
        rollout(0, prompt=QUESTION, items=[said("4")]),
        {"problem": {"text": QUESTION}, "id": 5},
        {"messages": "no chat", "question": [QUESTION]},
    ],
)
def test_evaluation_files_are_of_any_kind_or_of_none(audit, against, row):
    paths = against(row)
    assert overlaps(audit({"input": QUESTION, "output": INSTRUCTION}, against=paths))[0][1].endswith(f"stand in {paths[0]}:1")


def test_the_system_message_of_an_evaluation_is_no_question(audit, against):
    row = {"messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": QUESTION}, ANSWER]}
    assert overlaps(audit({"input": INSTRUCTION, "output": "b"}, against=against(row))) == []


def test_a_short_text_is_found_as_a_whole_and_too_short_ones_are_counted(audit, against):
    report = audit(
        {"input": f"Please! {SHORT}", "output": "b"},
        {"input": SHORT.removesuffix(" Bhutan."), "output": "b"},
        against=against(task(SHORT), task("What is 2+2?")),
    )
    assert [line for line, _ in overlaps(report)] == [1]
    (one,) = report.overlaps
    assert (one.num_texts, one.num_too_short, one.num_found) == (1, 1, 1)


def test_what_more_than_ten_texts_say_is_no_overlap_but_copies_of_one_text_are(audit, against):
    numbers = [
        f"{INSTRUCTION} What is {number} plus {number}, in words, and what is its square, in digits?" for number in range(11)
    ]
    row = {"input": INSTRUCTION, "output": "b"}
    assert overlaps(audit(row, against=against(*map(task, numbers[:10])))) != []
    assert overlaps(audit(row, against=against(*map(task, numbers)))) == []
    assert overlaps(audit(row, against=against(*[task(numbers[0])] * 12))) != []
    assert overlaps(audit({"input": INSTRUCTION * 3, "output": "b"}, against=against(*[task(INSTRUCTION)]))) != []


def test_each_evaluation_file_is_told_for_itself(audit, against):
    paths = (*against(task(QUESTION), name="a.jsonl"), *against(task(SHORT), name="b.jsonl"))
    report = audit(
        {"input": SHORT, "output": "b"}, {"input": "a", "output": SHORT}, {"input": QUESTION, "output": SHORT}, against=paths
    )
    assert [(one.num_found, one.num_rows) for one in report.overlaps] == [(1, 1), (1, 3)]


def test_ngram_sets_the_number_of_words(audit, against):
    row = {"input": " ".join(QUESTION.split()[:9]), "output": "b"}
    assert overlaps(audit(row, against=against(task(QUESTION)), ngram=10)) == []
    assert overlaps(audit(row, against=against(task(QUESTION)), ngram=9)) != []


def test_an_evaluation_file_that_cannot_be_read_is_refused(audit, against, tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        audit({"input": "a", "output": "b"}, against=(tmp_path / "none.jsonl",))
    with pytest.raises(DataError, match=r"eval\.jsonl:2: no JSON"):
        audit({"input": "a", "output": "b"}, against=against(task("a"), b"{"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (task("Hint: it is Thimphu. Say it.", expected_answer="thimphu"), "the reference answer (expected_answer): 'thimphu'"),
        (task("2 + 2 is\n 12345", expected_answer=12345), "the reference answer (expected_answer): '12345'"),
        (task("A or B?", expected_answer="A"), None),
        (task("About 123456.", expected_answer="12345"), None),
        (task("Answer with true", expected_answer=True), None),
        (task("Lhasa or Thimphu?", expected_answer=["Paris", "Thimphu"]), "the reference answer (expected_answer): 'Thimphu'"),
        (rollout(0, prompt="It is Thimphu", items=[said("Thimphu")], expected_answer="Thimphu"), "the reference answer"),
        (rollout(0, prompt="Is it Thimphu?", items=[said("Thimphu")]), None),
        ({"input": "Say: the capital of Bhutan is Thimphu.", "output": BHUTAN + "."}, "the final answer"),
        ({"input": "Say: four", "output": "four"}, None),
        (
            {"prompt": "the capital of Bhutan is Thimphu", "chosen": "The capital of Bhutan\nis Thimphu!", "rejected": "c"},
            "the final answer",
        ),
        ({"prompt": "the capital of Bhutan is Thimphu", "chosen": "c", "rejected": "The capital of Bhutan is Thimphu"}, None),
        (
            {"messages": [{"role": "user", "content": BHUTAN.lower()}, ANSWER, ANSWER | {"content": BHUTAN}]},
            "the final answer",
        ),
        ({"messages": [{"role": "user", "content": "Who?"}, ANSWER | {"content": BHUTAN}]}, None),
    ],
)  # fmt: skip
def test_an_answer_that_stands_in_the_prompt_is_told(audit, row, message):
    leaks = [text for _, check, text in told(audit(row)) if check == "leak"]
    assert len(leaks) == (message is not None)
    assert all(text.startswith(f"the prompt holds {message}") for text in leaks)


def test_the_field_of_the_reference_answer_can_be_named(audit):
    row = task("Thimphu?", verifier_metadata={"answer": "Thimphu"}, expected_answer="Lhasa")
    ((_, _, message),) = told(audit(row, answer_field="verifier_metadata.answer"))
    assert message == "the prompt holds the reference answer (verifier_metadata.answer): 'Thimphu'"
    assert told(audit(row, answer_field="expected_answer.answer")) == []


def lengths_of(report):
    return [(line, message) for line, check, message in told(report) if check == "length_outlier"]


def test_rows_of_more_tokens_than_max_length_are_counted(audit):
    rows = [{"input": "a" * number, "output": "b"} for number in (1, 400, 2)]
    (longest,) = {audit(rows[1]).longest}
    assert audit(*rows, max_length=longest).num_problems == 0
    report = audit(*rows, max_length=longest - 1)
    assert [(one.line, one.check, one.message) for one in report.problems] == [
        (2, "max_length", f"{longest} tokens; --max-length is {longest - 1}")
    ]


def test_rows_far_longer_or_shorter_than_the_others_are_told(audit):
    usual = [{"input": "7" * (200 + number), "output": "b"} for number in range(12)]
    report = audit(*usual, {"input": "7" * 900, "output": "b"}, {"input": "7", "output": "b"}, {"input": "7" * 2000, "output": "b"})
    assert report.lengths.p50 - 206 == audit({"input": "7", "output": "b"}).longest - 1
    assert [line for line, _ in lengths_of(report)] == [15, 13, 14]
    assert lengths_of(report)[0][1] == f"{report.longest} tokens, where the median row has {report.lengths.p50}"
    assert report.num_problems == 0


def test_a_few_tokens_more_among_equal_rows_and_few_rows_are_no_outliers(audit):
    equal = [{"input": "7" * 200, "output": str(number % 10)} for number in range(12)]
    assert lengths_of(audit(*equal, {"input": "7" * 220, "output": "b"})) == []
    assert lengths_of(audit(*equal[:3], {"input": "7" * 2000, "output": "b"})) == []
