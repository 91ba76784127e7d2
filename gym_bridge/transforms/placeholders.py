"""Task rows whose question stands in another dataset: {"dataset", "_hf_placeholder": {"row", "question_template"}}.

Nemotron's RL blends hold such rows where a licence forbids copies. A template is a text with {question} in it, or an object
with a prefix and a suffix, or nothing. The rest of the row, its agent above all, is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gym_bridge.errors import DataError
from gym_bridge.schemas.nemo_rl_rows import PLACEHOLDER
from gym_bridge.schemas.rollouts import Row


class Reference(NamedTuple):
    """Which row of which dataset a placeholder means."""

    dataset: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A dataset of the Hugging Face hub."""

    name: str
    split: str


KNOWN_SOURCES = {
    "nano_v3_sft_profiled_dapo17k": HubDataset(name="BytedTsinghua-SIA/DAPO-Math-17k", split="train"),
    "nano_v3_sft_profiled_skywork_no_omni": HubDataset(name="Skywork/Skywork-OR1-RL-Data", split="math"),
}
"""Where the datasets that Nemotron's blends name stand."""


def reference(row: Mapping[str, Any]) -> Reference | None:
    """What the row's placeholder means; None for a row without one. Raises DataError for a placeholder that means nothing."""
    if PLACEHOLDER not in row:
        return None
    placeholder, dataset = row[PLACEHOLDER], row.get("dataset")
    number = placeholder.get("row") if isinstance(placeholder, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise DataError(f"{PLACEHOLDER} has no 'row', a number from 0 on")
    if not isinstance(dataset, str) or not dataset:
        raise DataError(f"the row has a {PLACEHOLDER} and no 'dataset' that it counts in")
    return Reference(dataset, number)


def resolved(row: Mapping[str, Any], *, question: object, answer: object) -> Row:
    """The task row with its question and reference answer in it. Raises DataError for a question that is no text."""
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"the question of {_place(row)} is {type(question).__name__}; expected a text: see --question-field")
    if answer is None:
        raise DataError(f"{_place(row)} has no reference answer: see --answer-field")
    text = _filled(row[PLACEHOLDER].get("question_template"), question)
    kept = {key: value for key, value in row.items() if key != PLACEHOLDER}
    params = kept.get("responses_create_params")
    asked = (params if isinstance(params, dict) else {}) | {"input": [{"role": "user", "content": text}]}
    return kept | {"question": text, "expected_answer": answer, "responses_create_params": asked}


def at_path(value: Any, path: str) -> Any:
    """What stands at a dotted path of keys and list places; None where there is nothing."""
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _filled(template: Any, question: str) -> str:
    if template is None:
        return question
    if isinstance(template, dict):
        parts = (template.get("prefix") or "", question, template.get("suffix") or "")
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    if isinstance(template, str) and "{question}" in template:
        return template.replace("{question}", question)
    raise DataError("question_template is neither a text with {question} nor an object with prefix and suffix")


def _place(row: Mapping[str, Any]) -> str:
    return f"{row.get('dataset')}[{row[PLACEHOLDER].get('row')}]"
