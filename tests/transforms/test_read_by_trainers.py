"""Rows of every format as others read them: Hugging Face's `datasets`, and the data paths of TRL's SFT and DPO trainers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.schemas.nemo_rl_rows import RowKind, row_kind, row_problems

datasets = pytest.importorskip("datasets")

EXPECTED = Path(__file__).parents[2] / "fixtures" / "expected"
SFT = EXPECTED / "example_session_state_mgmt.sft.jsonl"
RESPONSE = EXPECTED / "example_single_tool_call.response.jsonl"
DPO = EXPECTED / "nemo_gym_rollouts.dpo.jsonl"

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
PREFERENCE_ROWS = [
    {
        "context": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
        "completions": [
            {
                "rank": 0,
                "completion": [
                    {"role": "assistant", "content": "", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "c1", "content": "4"},
                    {"role": "assistant", "content": "4"},
                ],
            },
            {"rank": 1, "completion": [{"role": "assistant", "content": "5"}]},
        ],
        "tools": [TOOL],
    }
] * 2
GRPO_ROWS = [{"input": "2+2?", "output": "4", "gym_bridge": {"task": "math_agent:0", "rewards": [0.0, 1.0]}}] * 2
TASK_ROWS = [
    {
        "responses_create_params": {"input": [{"role": "user", "content": "2+2?"}], "tools": [{"type": "function", "name": "add"}]},
        "agent_ref": {"type": "responses_api_agents", "name": "math_agent"},
        "expected_answer": "4",
        "gym_bridge": {"pass_rate": 0.25},
    },
    {"responses_create_params": {"input": "3+3?"}, "agent_ref": {"name": "math_agent"}, "expected_answer": 6},
]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Any]:
    """Rows through `datasets.load_dataset("json", ...)`, without a cache that other tests share."""

    def loaded(rows: list[dict[str, Any]]) -> Any:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))

    datasets.disable_progress_bars()
    datasets.disable_caching()
    yield loaded
    datasets.enable_caching()


@pytest.mark.parametrize(
    "rows",
    [rows_of(SFT), rows_of(RESPONSE), rows_of(DPO), PREFERENCE_ROWS, GRPO_ROWS],
    ids=["sft", "response", "dpo", "preference", "grpo"],
)
def test_rows_load_in_datasets_with_their_columns_and_texts(load, rows: list[dict[str, Any]]):
    kind = row_kind(rows[0])
    assert kind is not None
    assert [row_problems(row, kind) for row in rows] == [[]] * len(rows)
    loaded = load(rows)
    assert loaded.num_rows == len(rows)
    assert set(loaded.column_names) == set().union(*rows)
    for column in ("input", "output", "prompt", "chosen", "rejected"):
        if column in rows[0]:
            assert loaded[column][:] == [row[column] for row in rows]


@pytest.mark.parametrize("to", ["response", "sft", "grpo", "dpo", "preference", "tasks"])
def test_what_transform_makes_of_nemo_gyms_own_rollouts_is_good_for_nemo_rl_and_loads(tmp_path, load, to: str):
    from gym_bridge.api import transform
    from gym_bridge.schemas.transform_settings import TransformSettings

    inputs = sorted((EXPECTED.parent / "nemo_gym").glob("*.jsonl"))
    transform(inputs, TransformSettings(to=to, output=tmp_path / "out.jsonl", on_bad_row="skip"))
    rows = rows_of(tmp_path / "out.jsonl")
    kind = RowKind.RESPONSE if to == "grpo" else RowKind(to)
    assert {row_kind(row) for row in rows} == {kind}
    problems = {problem for row in rows for problem in row_problems(row, kind)}
    assert {one for one in problems if not one.startswith("no agent_ref.name")} == set()  # the oldest rollouts name no agent
    assert load(rows).num_rows == len(rows)


def test_tasks_survive_as_the_lines_that_nemo_rl_keeps_of_them():
    lines = [json.dumps(row) for row in TASK_ROWS]
    table = datasets.Dataset.from_dict({"extra_env_info": lines})
    assert [json.loads(line) for line in table["extra_env_info"]] == TASK_ROWS
    assert [row_problems(row, row_kind(row)) for row in TASK_ROWS] == [[], []]  # pyright: ignore[reportArgumentType]


@pytest.fixture
def sft_ids(tiny_llama: Path, tmp_path: Path) -> Any:
    """What TRL's SFTTrainer makes of rows: token ids and labels of each."""
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    def prepared(dataset: Any, **settings: Any) -> Any:
        config = SFTConfig(
            output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, max_length=None, disable_tqdm=True, **settings
        )
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        return SFTTrainer(model=str(tiny_llama), args=config, train_dataset=dataset, processing_class=tokenizer).train_dataset

    return prepared


@pytest.mark.slow
def test_trl_trains_sft_rows_on_the_tokens_that_our_own_renderer_writes(load, sft_ids, renderer):
    rows = rows_of(SFT)
    found = sft_ids(load(rows))
    for row, prepared in zip(rows, found, strict=True):
        ours = renderer.render_ids(row["messages"], tools=row["tools"])
        assert prepared["input_ids"] == ours[: len(prepared["input_ids"])]
        assert renderer.tokenizer.decode(ours[len(prepared["input_ids"]) :]).strip() == ""


@pytest.mark.slow
def test_trl_trains_response_rows_on_their_answers_alone(load, sft_ids, renderer):
    rows = rows_of(RESPONSE)
    found = sft_ids(load(rows).rename_columns({"input": "prompt", "output": "completion"}))
    for row, prepared in zip(rows, found, strict=True):
        trained = [token for token in prepared["labels"] if token != -100]
        assert renderer.tokenizer.decode(trained) == row["output"] + "<|im_end|>"


def dpo_ids(dataset: Any, model: Path, output: Path) -> Any:
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(output_dir=str(output), report_to=[], use_cpu=True, bf16=False, max_length=None, disable_tqdm=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return DPOTrainer(model=str(model), args=config, train_dataset=dataset, processing_class=tokenizer)


@pytest.mark.slow
def test_trl_takes_dpo_rows(load, tiny_llama, tmp_path, renderer):
    rows = rows_of(DPO)
    trainer = dpo_ids(load(rows), tiny_llama, tmp_path / "out")
    for row, prepared in zip(rows, trainer.train_dataset, strict=True):
        texts = {side: renderer.tokenizer.decode(prepared[f"{side}_ids"]) for side in ("prompt", "chosen", "rejected")}
        assert texts == {
            "prompt": row["prompt"],
            "chosen": row["chosen"] + "<|im_end|>",
            "rejected": row["rejected"] + "<|im_end|>",
        }
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == batch["completion_mask"].shape


@pytest.mark.slow
def test_trl_takes_preference_rows_as_conversations(load, tiny_llama, tmp_path, renderer):
    pairs = [
        {
            "prompt": row["context"],
            "chosen": row["completions"][0]["completion"],
            "rejected": row["completions"][1]["completion"],
            "tools": row["tools"],
        }
        for row in PREFERENCE_ROWS
    ]
    trainer = dpo_ids(load(pairs), tiny_llama, tmp_path / "out")
    (first, *_) = trainer.train_dataset
    text = renderer.tokenizer.decode(first["chosen_ids"])
    assert text.startswith('<tool_call>\n{"name": "add", "arguments": ')
    assert "<|im_start|>tool\n4<|im_end|>" in text
    assert "4<|im_end|>" in text
    assert renderer.tokenizer.decode(first["rejected_ids"]).startswith("5<|im_end|>")
