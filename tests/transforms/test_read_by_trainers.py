"""Rows of every format as others read them: Hugging Face's `datasets`, and the data paths of TRL's SFT and DPO trainers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.schemas.nemo_rl_rows import RowKind, row_kind, row_problems

datasets = pytest.importorskip("datasets")

EXPECTED = Path(__file__).parents[2] / "fixtures" / "expected"
NEMO_GYM = EXPECTED.parent / "nemo_gym"
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


def transform_to(to: str, directory: Path, inputs: list[Path], **settings: Any) -> None:
    from gym_bridge import transform
    from gym_bridge.schemas.transform_settings import TransformSettings

    transform(inputs, TransformSettings(to=to, output=directory / f"{to}.jsonl", on_bad_row="skip", **settings))


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
    transform_to(to, tmp_path, sorted(NEMO_GYM.glob("*.jsonl")))
    rows = rows_of(tmp_path / f"{to}.jsonl")
    kind = RowKind.RESPONSE if to == "grpo" else RowKind(to)
    assert {row_kind(row) for row in rows} == {kind}
    problems = {problem for row in rows for problem in row_problems(row, kind)}
    assert {one for one in problems if not one.startswith("no agent_ref.name")} == set()  # the oldest rollouts name no agent
    assert load(rows).num_rows == len(rows)


def test_arguments_as_strings_keep_the_digits_that_the_json_columns_of_datasets_round_away(tmp_path, load):
    transform_to("sft", tmp_path, [NEMO_GYM / "math_advanced_calculations.jsonl"], arguments="string", min_reward="none")
    loaded = load(rows_of(tmp_path / "sft.jsonl"))
    digits = "0.5532947556651122"  # what one tool gave and the next one was called with
    texts = [message["content"] for chat in loaded["messages"] for message in chat if message["role"] == "tool"]
    calls = [call for chat in loaded["messages"] for message in chat for call in message.get("tool_calls") or ()]
    assert sum(digits in text for text in texts) == 1
    assert [call["function"]["arguments"] for call in calls].count('{"radians":0.5532947556651122}') == 1


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
@pytest.mark.parametrize("arguments", ["object", "string"])
def test_trl_trains_on_the_calls_of_many_tools_as_they_were_made(tmp_path, load, sft_ids, tiny_llama, arguments: str):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    names = ["workplace_assistant", "example_multi_step", "xlam_fc", "user_guide", "mcqa"]
    names += ["math_advanced_calculations"] if arguments == "string" else []  # numbers of more than ten decimals
    transform_to("sft", tmp_path, [NEMO_GYM / f"{name}.jsonl" for name in names], arguments=arguments)
    rows = rows_of(tmp_path / "sft.jsonl")
    found = sft_ids(load(rows))
    assert len(found) == len(rows) > 15
    for row, prepared in zip(rows, found, strict=True):
        text = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
        assert tokenizer.decode(prepared["input_ids"]) == text  # no key of another row's tools


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


def siblings_of_real_rollouts(path: Path) -> Path:
    """Rollouts of NeMo Gym with the tools of two servers, and for each one that gives up."""
    lines = []
    for task, name in enumerate(("example_multi_step", "workplace_assistant")):
        row = json.loads((NEMO_GYM / f"{name}.jsonl").read_text().splitlines()[0]) | {"_ng_task_index": task, "reward": 1.0}
        sorry = {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I cannot.", "annotations": []}],
        }
        lines += [row, row | {"reward": 0.0, "response": row["response"] | {"output": [sorry]}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["object", "string"])
def test_trl_takes_preference_rows_as_conversations(tmp_path, load, tiny_llama, arguments: str):
    from transformers import AutoTokenizer

    transform_to("preference", tmp_path, [siblings_of_real_rollouts(tmp_path / "r.jsonl")], arguments=arguments)
    rows = [*rows_of(tmp_path / "preference.jsonl"), *(PREFERENCE_ROWS if arguments == "string" else ())]
    pairs = [
        {
            "prompt": row["context"],
            "chosen": row["completions"][0]["completion"],
            "rejected": row["completions"][1]["completion"],
            "tools": row["tools"],
        }
        for row in rows
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    loaded = load(pairs)
    trainer = dpo_ids(loaded, tiny_llama, tmp_path / "out")
    assert len(trainer.train_dataset) == len(pairs) >= 2
    for pair, read, prepared in zip(pairs, loaded, trainer.train_dataset, strict=True):
        tools = read["tools"]  # the keys of an object may come in another order
        assert tools == pair["tools"]
        prompt = tokenizer.apply_chat_template(pair["prompt"], tools=tools, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(prepared["prompt_ids"]) == prompt
        for side in ("chosen", "rejected"):
            whole = tokenizer.apply_chat_template([*pair["prompt"], *pair[side]], tools=tools, tokenize=False)
            assert prompt + tokenizer.decode(prepared[f"{side}_ids"]) == whole
    assert "<tool_call>" in tokenizer.decode(trainer.train_dataset[0]["chosen_ids"])
