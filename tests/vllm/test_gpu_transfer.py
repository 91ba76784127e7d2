"""Weights over vLLM's transfer engine, from GPU to GPU: needs vLLM beside the trainer, and for NCCL a second GPU."""

import asyncio
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from gym_bridge.api.vllm_sampling import vllm_sampler
from gym_bridge.schemas.settings import SamplerSettings
from gym_bridge.schemas.tokens import SampleKey, SamplingParams, TrainingSequence
from tests.policy.stage import open_policy, weighted
from tests.vllm.process import TRAINING, VLLMProcess

pytestmark = [pytest.mark.vllm, pytest.mark.gpu]
PROMPT = tuple(range(5, 25))


@pytest.mark.parametrize(("kind", "sleeps"), [("ipc", False), ("ipc", True), ("nccl", False)])
def test_a_server_samples_with_the_weights_that_the_trainers_gpu_holds(tiny_tied_for_vllm: Path, tmp_path: Path, kind, sleeps):
    pytest.importorskip("vllm", reason="needs vLLM beside the trainer")
    needed = 2 if kind == "nccl" else 1
    if torch.cuda.device_count() < needed:
        pytest.skip(f"needs {needed} GPUs")
    words = ["--enable-scale-out", "--gpu-memory-utilization", "0.2", "--max-model-len", 512, "--dtype", "float32"]
    words += ["--weight-transfer-config", json.dumps({"backend": kind}), *(["--enable-sleep-mode"] if sleeps else [])]
    environment = {**TRAINING, "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "CUDA_VISIBLE_DEVICES": str(needed - 1)}
    with closing(VLLMProcess(tiny_tied_for_vllm, *words, environment=environment)) as server:
        server.start()
        server.wait()
        policy = open_policy(tiny_tied_for_vllm, device="cuda:0", lr=1e-2)
        settings = SamplerSettings(kind="vllm", url=(server.url,), transfer=kind, sleep=sleeps)
        with closing(vllm_sampler(policy, settings, overlaps=False, run=tmp_path)) as sampler:
            for version in range(3):
                sampler.push(policy.weights(), version)
                params = SamplingParams(max_tokens=32)
                found = asyncio.run(sampler.sample(PROMPT, params, key=SampleKey(0, version, 0, 0)))
                ids = np.array([*PROMPT, *found.ids], dtype=np.int32)
                sequence = TrainingSequence(token_ids=ids, train_mask=np.arange(len(ids)) >= len(PROMPT))
                (ours,) = policy.logprobs([sequence])
                assert found.policy_version == version
                assert np.exp(np.abs(ours.numpy() - np.array(found.logprobs))).mean() < 1.001
                sampler.ensure(version)
                policy.step([[sequence]], weighted)
