"""How long weights take from the trainer to a vLLM server on the same machine, and how closely what it then samples agrees.

    python -m benchmarks.weight_push --vllm .venv-vllm/bin/python [--dtype float32|bfloat16] [--pushes 7]
        [--weights-directory /dev/shm]

Starts the server, steps the policy once, and pushes over the disk, between pushes nothing. Prints medians with the smallest and
largest, of the whole and of its parts, and the gap: mean exp |rollout - trainer| over completions sampled after the last push.
"""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch

from gym_bridge.algorithms.losses import negative_log_likelihood
from gym_bridge.api.models import model_directory
from gym_bridge.api.vllm_sampling import VLLMSampling, vllm_sampler
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import PolicySettings, SamplerSettings
from gym_bridge.schemas.tokens import SampleKey, SamplingParams, TrainingSequence

START_TIMEOUT_S = 300.0
PROMPT = (1, 4093, 198, 1780, 314, 216, 34, 27, 34, 47, 2, 198, 1, 520, 9531, 198)  # `What is 2+2?` as ChatML of SmolLM2
END = 2


@contextmanager
def served(python: Path, model: Path, dtype: str, directory: Path) -> Iterator[str]:
    """The address of a vLLM server of the model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [python.absolute(), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1", "--port", port]
    words += ["--enforce-eager", "--enable-scale-out", "--gpu-memory-utilization", "0.4", "--dtype", dtype, "--max-model-len", 1024]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with (directory / "vllm.log").open("wb") as log:
        server = subprocess.Popen(
            [str(one) for one in words], env=environment, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _wait(server: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("vLLM did not start")


def stepped(model: Path, dtype: str) -> TorchPolicy:
    """A policy one update away from the model."""
    policy = TorchPolicy(model, PolicySettings(model=str(model), compute_dtype=dtype, lr=1e-5))
    ids = np.arange(5, 69, dtype=np.int32)
    sequence = TrainingSequence(token_ids=ids, train_mask=np.arange(len(ids)) > 3)
    policy.step([[sequence]], lambda logprobs, columns: Loss(negative_log_likelihood(logprobs, num_tokens=columns.num_tokens)))
    return policy


def gap(policy: TorchPolicy, sampler: VLLMSampling, *, num_completions: int = 16) -> tuple[float, float, int]:
    """mean exp |rollout - trainer|, the largest difference, and over how many tokens."""
    params = SamplingParams(max_tokens=64, stop_token_ids=(END,))

    async def sample():
        return await asyncio.gather(
            *(sampler.sample(PROMPT, params, key=SampleKey(0, task, 0, 0)) for task in range(num_completions))
        )

    found = asyncio.run(sample())
    assert {one.policy_version for one in found} == {sampler.version}
    sequences = []
    for one in found:
        ids = np.array([*PROMPT, *one.ids], dtype=np.int32)
        sequences.append(TrainingSequence(token_ids=ids, train_mask=np.arange(len(ids)) >= len(PROMPT)))
    ours = torch.cat(policy.logprobs(sequences)).numpy()
    difference = np.abs(ours - np.concatenate([one.logprobs for one in found]))
    return float(np.exp(difference).mean()), float(difference.max()), len(difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True, help="interpreter of the venv with vLLM")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weights-directory", type=Path, help="where weights are laid down; else a temporary directory")
    parser.add_argument("--pushes", type=int, default=7)
    options = parser.parse_args()
    model = model_directory(options.model)
    with tempfile.TemporaryDirectory() as directory, served(options.vllm, model, options.dtype, Path(directory)) as url:
        policy = stepped(model, options.dtype)
        sampler = vllm_sampler(
            policy,
            SamplerSettings(kind="vllm", url=(url,), weights_directory=options.weights_directory),
            overlaps=False,
            run=Path(directory),
        )
        with closing(sampler):
            times: dict[str, list[float]] = {}
            for version in range(options.pushes + 1):  # the first one warms up
                started = time.perf_counter()
                sampler.push(policy.weights(), version)
                seconds = {"push_s": time.perf_counter() - started, **sampler.weights.timings_s}
                for name, value in seconds.items() if version else ():
                    times.setdefault(name, []).append(value)
            mean, largest, num_tokens = gap(policy, sampler)
    print(f"{options.model}, {options.dtype}, {options.pushes} pushes, load average {os.getloadavg()[0]:.1f}")
    for name, values in times.items():
        print(f"  {name:8} {median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    print(f"  gap      {mean:.7f}, largest difference {largest:.6f}, over {num_tokens} tokens")


if __name__ == "__main__":
    main()
