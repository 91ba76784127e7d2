"""The command line against real vLLM, on each wire."""

import json
from pathlib import Path

import pytest

from gym_bridge.cli.main import main
from gym_bridge.io.token_store import TokenStore
from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer
from tests.vllm.playing import MODEL, ServedModel

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("api", ["responses", "chat", "tokens"])
def test_a_collection_over_each_wire_closes_its_ledger(api: str, served: ServedModel, tmp_path: Path):
    tasks, output = tmp_path / "tasks.jsonl", tmp_path / "r.jsonl"
    made = ArithmeticServer.tasks(num_tasks=6, seed=0, split="train")
    tasks.write_text("".join(json.dumps(row) + "\n" for row in made))
    argv = ["collect", "--input", str(tasks), "--output", str(output), "--server", "arithmetic", "--num-repeats", "2", "--quiet"]
    argv += ["--model-url", served.url, "--model", MODEL, "--model-api", api, "--temperature", "0", "--max-output-tokens", "24"]
    argv += ["--concurrency", "auto", *(["--tokenizer", str(served.directory)] if api == "tokens" else [])]
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert not ended.value.code
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted((row["_ng_task_index"], row["_ng_rollout_index"]) for row in rows) == [(t, r) for t in range(6) for r in range(2)]
    assert all(row["reward"] in (0.0, 1.0) and row["gym_bridge"]["num_output_tokens"] > 0 for row in rows)
    if api == "tokens":
        store = TokenStore(tmp_path / "r.tokens")
        for row in rows:
            (turn,) = store.read((row["_ng_task_index"], row["_ng_rollout_index"], 0))
            assert len(turn.completion_ids) == len(turn.logprobs) == row["gym_bridge"]["num_output_tokens"]
