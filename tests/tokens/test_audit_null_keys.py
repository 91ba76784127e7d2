"""Keys that become null in a table of Hugging Face `datasets`, held against the library itself."""

from typing import Any

import orjson
import pytest

from gym_bridge.tokens.audit.null_keys import MAX_KEYS, KeyCheck
from tests.tokens.audit_stage import ANSWER, CHAT, USER, audit_rows, calling, output, told, write_rows

WEATHER = calling("a", name="weather", arguments={"city": "Paris", "at": {"hour": 9}})
CLOCK = calling("b", name="clock", arguments={"zone": "UTC", "at": {"minute": 5}})


def tool(name, **properties):
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


FILES = {
    "tool calls": [
        {"messages": [USER, WEATHER, output("a"), ANSWER], "tools": [tool("weather", city="string"), tool("clock", zone="string")]},
        {"messages": [USER, CLOCK, output("b"), ANSWER], "tools": [tool("clock", zone="string")], "gym_bridge": {"task": "x"}},
        {"messages": [USER, ANSWER], "gym_bridge": {"reward": 1.0}},
    ],
    "texts": [{"input": "a", "output": "b"}, {"input": "a", "output": "b", "note": "c"}],
    "preference": [
        {
            "context": [USER],
            "completions": [{"rank": rank, "completion": [{**ANSWER, "content": str(rank)}]} for rank in (0, 1)],
            "tools": [tool("a", x="number"), tool("a", x="number")],
        },
        {
            "context": [{**USER, "name": "Ann"}],
            "completions": [{"rank": 0, "completion": [WEATHER, output("a"), ANSWER]}, {"rank": 1, "completion": [ANSWER]}],
            "tools": [],
        },
    ],
    "nulls and empties": [
        {"input": "a", "output": "b", "meta": {"x": {"y": 1}, "z": None, "w": []}},
        {"input": "a", "output": "b", "meta": {"x": None, "z": {"k": 1}, "w": [{"q": 1}, {"r": 2}]}},
        {"input": "a", "output": "b", "meta": None},
        {"input": "a", "output": "b", "meta": {}},
    ],
    "equal": [CHAT, CHAT],
}


def nulls(before: Any, after: Any, path: str = "") -> set[str]:
    """Paths of the keys that are null in `after` and absent from `before`."""
    found: set[str] = set()
    if isinstance(after, dict) and isinstance(before, dict):
        for key, value in after.items():
            below = f"{path}.{key}" if path else key
            if key in before:
                found |= nulls(before[key], value, below)
            else:
                assert value is None
                found.add(below)
    elif isinstance(after, list) and isinstance(before, list):
        for one, other in zip(before, after, strict=True):
            found |= nulls(one, other, path + "[]")
    return found


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load(rows, on_mixed_types): the rows as `datasets.load_dataset` gives them."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed; the extra dev brings it")
    if not hasattr(datasets, "Json"):
        pytest.skip("this release of datasets has no Json columns, and no option to do without them")
    datasets.disable_progress_bars()

    def run(rows, **options):
        directory = tmp_path_factory.mktemp("table")
        path = write_rows(directory / "rows.jsonl", rows)
        return list(datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(directory), **options))

    return run


def without_provenance(rows):
    return [{key: value for key, value in row.items() if key != "gym_bridge"} for row in rows]


@pytest.mark.parametrize("name", FILES)
def test_the_keys_told_are_those_that_the_library_turns_into_nulls(load, name):
    rows = without_provenance(FILES[name])
    check = KeyCheck()
    for line, row in enumerate(FILES[name], 1):
        check.add(line, row)
    found = list(check.findings())
    assert {kind for _, kind, _ in found} <= {"null_keys"}
    polluted = set().union(*map(nulls, rows, load(rows, on_mixed_types=None)))
    assert {message.split(" is absent from ")[0] for _, _, message in found} == polluted
    assert (name == "equal") == (polluted == set())


def test_columns_of_json_keep_the_keys_of_objects_and_not_those_of_rows(load):
    rows = without_provenance(FILES["tool calls"])
    assert set().union(*map(nulls, rows, load(rows))) == {"tools"}


def test_values_of_several_types_fit_no_column(load):
    rows = [{"a": {"x": 1}}, {"a": {"x": "one"}}, {"a": {"x": 2.5}}]
    check = KeyCheck()
    for line, row in enumerate(rows, 1):
        check.add(line, row)
    assert list(check.findings()) == [(1, "mixed_types", "a.x holds values of several types: number, string")]
    import datasets

    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        load(rows, on_mixed_types=None)


def test_the_report_tells_how_many_lack_a_key_and_where_it_stands_first(renderer, tmp_path):
    report = audit_rows(tmp_path, renderer, CHAT, {"messages": [USER, WEATHER, output("a"), WEATHER]}, {"messages": [USER, CLOCK]})
    found = {message.split(" is absent from ")[0]: (line, message) for line, check, message in told(report) if check == "null_keys"}
    path = "messages[].tool_calls[].function.arguments"
    assert found[f"{path}.city"] == (2, f"{path}.city is absent from 1 of 3 objects, and null there in a `datasets` table")
    assert found[f"{path}.zone"] == (3, f"{path}.zone is absent from 2 of 3 objects, and null there in a `datasets` table")
    assert f"{path}.at" not in found
    assert found[f"{path}.at.minute"][0] == 3
    assert report.num_problems == 0


def test_a_column_that_rows_lack_is_one_of_rows(renderer, tmp_path):
    report = audit_rows(tmp_path, renderer, CHAT, {**CHAT, "tools": [tool("a")]})
    assert (2, "null_keys", "tools is absent from 1 of 2 rows, and null there in a `datasets` table") in told(report)


def test_files_that_no_table_is_made_of_have_no_such_keys(renderer, tmp_path):
    report = audit_rows(tmp_path, renderer, *({"responses_create_params": {"input": "a"}, name: 1} for name in "ab"))
    assert told(report) == []


def test_objects_whose_keys_are_data_do_not_fill_the_memory():
    check = KeyCheck()
    for line in range(1, 4):
        check.add(line, {"a": {f"{line}-{number}": {"x": number} for number in range(MAX_KEYS // 2)}})
    findings = list(check.findings())
    assert findings[-1] == (1, "null_keys", f"more than {MAX_KEYS} different keys; those after them were not compared")
    assert len(findings) <= MAX_KEYS + 1


def test_keys_of_any_name_are_told(renderer, tmp_path):
    rows = [{"input": "a", "output": "b", "x.y[]": {"": 1}}, {"input": "a", "output": "b", "x.y[]": {}}]
    messages = [message for _, check, message in told(audit_rows(tmp_path, renderer, *rows)) if check == "null_keys"]
    assert [message.split(" is absent")[0] for message in messages] == ["x.y[]."]
    assert orjson.loads(orjson.dumps(messages)) == messages
