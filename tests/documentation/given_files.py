"""The small files that pages name and no command of theirs makes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars
import yaml
import zstandard

from tests.documentation.pages import ROOT

PLAYED = {"server": "arithmetic", "max_output_tokens": 16}
SUITE = {
    "output": "out/suite",
    "play": PLAYED,
    "sets": {"sums": {"input": "out/heldout.jsonl"}},
    "policies": {"trained": {"model": "runs/sft"}, "base": {"model": "runs/sft"}},  # nothing is lost between equals
    "baseline": "base",
}
AIME = {"id": 60, "problem": "Find $1+1$.", "solution": "...", "answer": "002", "url": "x", "year": "2024"}
GPQA = {
    "Question": "Which is a gas?",
    "Correct Answer": "neon",
    **{f"Incorrect Answer {number}": word for number, word in enumerate(("iron", "salt", "gold"), start=1)},
}
AGENT = {"type": "responses_api_agents", "name": "math_agent"}
SOURCES = {"DAPO-Math-17k": "nano_v3_sft_profiled_dapo17k", "Skywork-OR1": "nano_v3_sft_profiled_skywork_no_omni"}
"""By directory the names that blends have for them."""


def write_given_files(directory: Path, *, shop: Path) -> None:
    """Tasks, task sets, a suite and settings of a training, beside which README.md is followed."""
    directory.mkdir()
    (directory / "benchmarks").symlink_to(ROOT / "benchmarks")
    gym_bridge("tasks", "arithmetic", "--num-tasks", 4, "--output", directory / "tasks.jsonl")
    polars.DataFrame([AIME]).write_parquet(directory / "aime_2024.parquet")
    polars.DataFrame([GPQA]).write_csv(directory / "gpqa_diamond.csv")
    _write_yaml(directory / "suite.yaml", SUITE)
    _write_yaml(directory / "prompt.yaml", {"system": "Answer with one number.", "user": "{question}"})
    question = {"responses_create_params": {}, "question": "What is 12 + 34?", "operands": [12, 34], "expected_answer": "46"}
    _write_rows(directory / "questions.jsonl", [question])
    for verb, recipe in (("sft", "sft"), ("grpo", "rlvr")):
        settings = yaml.safe_load((shop / f"{recipe}.yaml").read_text())
        data = {"train": f"out/{'sft' if verb == 'sft' else 'train'}.jsonl"}
        env = {"env": {"server": "arithmetic"}} if verb == "grpo" else {}
        settings |= {"data": data, **env, "trainer": {**settings["trainer"], "output": f"runs/launched_{verb}"}}
        _write_yaml(directory / f"{verb}.yaml", settings)


def write_rollouts(directory: Path) -> None:
    """The rollouts of README.md, with what stands beside them, in the other places where pages have theirs."""
    for place in ("runs/x", "a", "b"):
        (directory / place).mkdir(parents=True)
        for path in (directory / "out").glob("rollouts*"):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, directory / place / path.name)
    whole = (directory / "b" / "rollouts.jsonl").read_bytes()
    (directory / "b" / "rollouts.jsonl.zst").write_bytes(zstandard.compress(whole))


def write_blend(directory: Path, data: Path) -> None:
    """Task files of NeMo Gym's: whole ones, and one whose rows stand in other datasets, in `data`."""
    rows = []
    for place, name in SOURCES.items():
        asked = [[{"role": "user", "content": f"{place}: 3 + {number}?"}] for number in range(20)]
        source = [{"prompt": messages, "reward_model": {"ground_truth": "7"}} for messages in asked]
        _write_rows(data / place / "train.jsonl", source)
        filled = [{"row": row, "question_template": None} for row in range(len(source))]
        rows += [{"dataset": name, "agent_ref": AGENT, "_hf_placeholder": one} for one in filled]
    _write_rows(directory / "blend.jsonl", rows)
    for number, name in enumerate("ab"):
        asked = [{"role": "user", "content": f"What is {number} + 1?"}]
        _write_rows(directory / f"{name}.jsonl", [{"responses_create_params": {"input": asked}, "agent_ref": AGENT}])


def write_nemo_rl(checkout: Path, model: Path) -> None:
    """Of NeMo RL's checkout: its example configs and scripts, and a checkpoint of its own."""
    configs = checkout / "examples" / "configs"
    shutil.copytree(ROOT / "tests" / "cli" / "nemo_rl_configs", configs)
    shutil.copy2(configs / "grpo.yaml", configs / "grpo_math_1B.yaml")
    (checkout / "examples" / "run_sft.py").write_text("")
    step = checkout / "results" / "grpo" / "step_3"
    shutil.copytree(model, step / "policy" / "weights" / "model" / "consolidated")
    shutil.copytree(model, step / "policy" / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    (step / "training_info.json").write_text('{"step": 3}')
    (step / "config.yaml").write_text("policy: {model_name: Qwen/Qwen3-0.6B}\n")


def gym_bridge(*argv: object) -> None:
    """A command that must succeed for any page to have its files."""
    subprocess.run([sys.executable, "-m", "gym_bridge", *map(str, argv)], check=True, capture_output=True)


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
