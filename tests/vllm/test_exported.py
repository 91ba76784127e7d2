"""A directory that `checkpoint export` wrote is a model for vLLM."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gym_bridge.api.checkpoints import ExportSettings, export_checkpoint
from tests.vllm.process import vllm_python

pytestmark = pytest.mark.vllm
PROMPT = [5, 6, 7, 8, 9]
NUM_TOKENS = 8
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    model = LLM(sys.argv[1], dtype=sys.argv[2], enforce_eager=True, max_model_len=64, gpu_memory_utilization=0.2)
    params = SamplingParams(temperature=0, max_tokens=int(sys.argv[4]), ignore_eos=True)
    answer = model.generate({"prompt_token_ids": json.loads(sys.argv[3])}, params)[0]
    print("TOKENS", json.dumps(list(answer.outputs[0].token_ids)))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_answers_with_an_exported_model_as_transformers_does(tiny_for_vllm: Path, tmp_path: Path, dtype):
    export_checkpoint(str(tiny_for_vllm), tmp_path / "out", ExportSettings(dtype=dtype, max_shard_size="200KB"))
    (tmp_path / "answer.py").write_text(PROGRAM)
    words = [vllm_python(), tmp_path / "answer.py", tmp_path / "out", dtype, json.dumps(PROMPT), NUM_TOKENS]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run([str(one) for one in words], env=environment, cwd="/", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = next(json.loads(line.removeprefix("TOKENS ")) for line in done.stdout.splitlines() if line.startswith("TOKENS "))
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out").float()
    with torch.no_grad():
        logits = module(torch.tensor([[*PROMPT, *answer]])).logits[0, len(PROMPT) - 1 : -1]
    chosen = logits[torch.arange(NUM_TOKENS), torch.tensor(answer)]
    assert len(answer) == NUM_TOKENS
    assert torch.all(logits.max(dim=-1).values - chosen < (1e-3 if dtype == "float32" else 0.1))  # the best, or as good
