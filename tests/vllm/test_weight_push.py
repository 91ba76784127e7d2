"""Weights of a policy that trains, pushed to real vLLM servers: what these sample is what the policy then says."""

import asyncio
import itertools
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest

from gym_bridge.api.vllm_sampling import VLLMSampling, vllm_sampler
from gym_bridge.rollouts.models.replicas import home_of
from gym_bridge.rollouts.models.vllm_replicas import VLLMReplicas
from gym_bridge.schemas.settings import SamplerSettings
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams, TrainingSequence
from tests.policy.stage import open_policy, weighted
from tests.vllm.process import TRAINING, VLLMProcess, vllm_python

pytestmark = pytest.mark.vllm
PROMPT = tuple(3 + number % 390 for number in range(300))
"""Longer than a block of vLLM's prefix cache."""
ROOM = 32
END = 2
FLOAT32, BFLOAT16 = 1.0001, 1.05


@pytest.fixture(scope="module")
def servers(tiny_tied_for_vllm: Path) -> Iterator[tuple[VLLMProcess, VLLMProcess]]:
    """One in float32 that takes adapters, one in bfloat16."""
    words = ["--enable-scale-out", "--gpu-memory-utilization", "0.2", "--max-model-len", 1024]
    adapters = ["--dtype", "float32", "--enable-lora", "--max-lora-rank", 8]
    first = VLLMProcess(tiny_tied_for_vllm, *words, *adapters, environment={**TRAINING, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})
    second = VLLMProcess(tiny_tied_for_vllm, *words, "--dtype", "bfloat16", environment=TRAINING)
    with closing(first), closing(second):
        first.start()
        second.start()
        first.wait()
        second.wait()
        yield first, second


def opened(policy, *servers: VLLMProcess, run: Path, overlaps: bool = False) -> VLLMSampling:
    """The sampler over the servers."""
    settings = SamplerSettings(kind="vllm", url=tuple(one.url for one in servers))
    return vllm_sampler(policy, settings, overlaps=overlaps, run=run, patience_s=30.0)


def step(policy) -> None:
    """An update that moves log-probs by far more than the bounds."""
    ids = np.arange(5, 45, dtype=np.int32)
    policy.step([[TrainingSequence(token_ids=ids, train_mask=np.arange(40) > 3)]], weighted)


def key(task: int) -> SampleKey:
    return SampleKey(0, task, 0, 0)


def at_home(replica: int) -> SampleKey:
    """A rollout whose home is one of two replicas."""
    return next(key(task) for task in range(99) if home_of(task, 0, 2) == replica)


def sampled(sampler, *keys: SampleKey, max_tokens: int = ROOM, prompt: Sequence[int] = PROMPT) -> list[Completion]:
    """Completions of the prompt, side by side."""
    params = SamplingParams(max_tokens=max_tokens, stop_token_ids=(END,))

    async def run() -> list[Completion]:
        return list(await asyncio.gather(*(sampler.sample(prompt, params, key=one) for one in keys)))

    return asyncio.run(run())


def differences(policy, completion: Completion, prompt: Sequence[int] = PROMPT) -> np.ndarray:
    """|rollout - trainer| of each token."""
    ids = np.array([*prompt, *completion.ids], dtype=np.int32)
    (ours,) = policy.logprobs([TrainingSequence(token_ids=ids, train_mask=np.arange(len(ids)) >= len(prompt))])
    return np.abs(ours.numpy() - np.array(completion.logprobs))


def gap(policy, completions: Sequence[Completion]) -> float:
    """mean exp |rollout - trainer|, which is 1 where both agree."""
    return float(np.exp(np.concatenate([differences(policy, one) for one in completions])).mean())


@pytest.mark.parametrize(("number", "dtype", "bound"), [(0, "float32", FLOAT32), (1, "bfloat16", BFLOAT16)])
def test_after_a_push_servers_sample_with_the_policys_weights(tiny_tied_for_vllm, servers, tmp_path: Path, number, dtype, bound):
    policy = open_policy(tiny_tied_for_vllm, compute_dtype=dtype, lr=1e-2)
    with closing(opened(policy, servers[number], run=tmp_path)) as sampler:
        for version in range(3):
            sampler.push(policy.weights(), version)
            found = sampled(sampler, *map(key, range(8)))
            assert {one.policy_version for one in found} == {version}
            assert gap(policy, found) < bound, version
            before = gap(policy, found)
            step(policy)
            assert gap(policy, found) > 1.5 * before  # had the push, or the reset of the prefix cache, done nothing


def test_a_greedy_completion_is_the_likeliest_and_has_the_models_own_logprobs(tiny_tied_for_vllm, servers, tmp_path: Path):
    policy = open_policy(tiny_tied_for_vllm)
    with closing(opened(policy, servers[0], run=tmp_path)) as sampler:
        sampler.push(policy.weights(), 0)
        params = SamplingParams(max_tokens=ROOM, temperature=0, stop_token_ids=(END,))
        first, second = (asyncio.run(sampler.sample(PROMPT, params, key=key(task))) for task in range(2))
        assert first == second
        assert gap(policy, [first]) < FLOAT32


async def tokens_flow(server: VLLMProcess, *, more: int = 40) -> None:
    """Return when the server has generated that many tokens from now on."""

    async def generated() -> float:
        told = (await client.get(f"{server.url}/metrics")).text.splitlines()
        return sum(float(line.split()[-1]) for line in told if line.startswith("vllm:generation_tokens_total"))

    each_its_own = httpx.Limits(max_keepalive_connections=0)  # a stalled server closes connections that were kept
    async with httpx.AsyncClient(timeout=30, limits=each_its_own) as client, asyncio.timeout(120):
        first = await generated()
        while await generated() < first + more:
            await asyncio.sleep(0.01)


def test_pushes_under_completions_change_weights_between_two_tokens_and_lose_none(tiny_tied_for_vllm, servers, tmp_path: Path):
    prompt, params = PROMPT[:20], SamplingParams(max_tokens=200)
    odd, even = open_policy(tiny_tied_for_vllm, lr=1e-2), open_policy(tiny_tied_for_vllm, lr=1e-2)
    step(even)
    with closing(opened(odd, servers[0], run=tmp_path, overlaps=True)) as sampler:
        sampler.push(odd.weights(), 1)
        tasks = itertools.count()

        async def play(pushed: asyncio.Event) -> list[Completion]:
            found: list[Completion] = []
            while not pushed.is_set():
                found.append(await sampler.sample(prompt, params, key=key(next(tasks))))
            return found

        async def run() -> list[Completion]:
            pushed = asyncio.Event()
            playing = [asyncio.create_task(play(pushed)) for _ in range(8)]
            for version in range(2, 10):
                await tokens_flow(servers[0])  # however slow this machine: no push before there is something to interrupt
                await asyncio.to_thread(sampler.push, (even if version % 2 == 0 else odd).weights(), version)
            pushed.set()
            return [one for played in await asyncio.gather(*playing) for one in played]

        found = asyncio.run(run())
    by_odd, by_even = ([differences(policy, one, prompt) < 1e-3 for one in found] for policy in (odd, even))
    num_mixed = 0
    for one, of_odd, of_even in zip(found, by_odd, by_even, strict=True):
        assert (of_odd | of_even).all()
        assert (of_odd if one.policy_version % 2 else of_even)[0]
        num_mixed += bool((~of_odd).any() and (~of_even).any())
    assert num_mixed > 0


def test_a_server_that_was_killed_comes_back_with_the_policys_weights(tiny_tied_for_vllm, servers, tmp_path: Path):
    policy = open_policy(tiny_tied_for_vllm, lr=1e-2)
    with closing(opened(policy, *servers, run=tmp_path)) as sampler:
        sampler.push(policy.weights(), 0)
        assert_each_serves(sampler, policy, version=0)
        servers[1].kill()
        step(policy)
        sampler.push(policy.weights(), 1)
        found = sampled(sampler, at_home(0), at_home(1))
        assert [one.policy_version for one in found] == [1, 1]
        assert gap(policy, found) < FLOAT32  # both by the one that is left
        servers[1].start()
        servers[1].wait()
        assert label(servers[1]) == "default"
        sampler.ensure(1)
        assert_each_serves(sampler, policy, version=1)
        # As after a start that nobody saw: the first weights, and no name.
        post(servers[1], "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(tiny_tied_for_vllm)}})
        post(servers[1], "/update_weight_version", {"new_version": "default"})
        assert_each_serves(sampler, policy, version=1)


def assert_each_serves(sampler: VLLMSampling, policy, *, version: int) -> None:
    """Both replicas sample with the policy's weights, in float32 and in bfloat16; none rests."""
    https = [one.server.sampler.http for one in sampler.replicas._rotation._replicas]
    afresh = VLLMReplicas(lambda: dict(enumerate(https)), sampler.weights)
    by_first, by_second = sampled(afresh, at_home(0), at_home(1))
    assert (by_first.policy_version, by_second.policy_version) == (version, version)
    assert gap(policy, [by_first]) < FLOAT32
    assert FLOAT32 < gap(policy, [by_second]) < BFLOAT16  # in bfloat16: it was the second that sampled


def test_an_adapter_travels_alone(tiny_tied_for_vllm, servers, tmp_path: Path):
    policy = open_policy(tiny_tied_for_vllm, lr=1e-1, lora={"rank": 4, "alpha": 8})
    with closing(opened(policy, servers[0], run=tmp_path)) as sampler:
        for version in range(3):
            sampler.push(policy.weights(), version)
            (laid_out,) = (tmp_path / "vllm_weights" / "adapters").iterdir()
            assert {one.name for one in laid_out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
            found = sampled(sampler, *map(key, range(4)))
            assert {one.policy_version for one in found} == {version}
            assert gap(policy, found) < FLOAT32
            step(policy)
            assert gap(policy, found) > FLOAT32


def test_an_adapter_is_merged_where_the_server_takes_none(tiny_tied_for_vllm, servers, tmp_path: Path, caplog):
    policy = open_policy(tiny_tied_for_vllm, lr=1e-1, lora={"rank": 4, "alpha": 8})
    step(policy)
    with closing(opened(policy, servers[1], run=tmp_path)) as sampler:
        assert "--enable-lora --max-lora-rank 4" in caplog.text
        sampler.push(policy.weights(), 1)
        assert gap(policy, sampled(sampler, *map(key, range(4)))) < BFLOAT16


def test_vllms_transfer_engine_takes_what_is_given_to_it(servers, tmp_path: Path):
    program = """
import json, sys, torch
from dataclasses import asdict
from gym_bridge.policy.samplers.vllm_control import ReplicaControl, control_client
from gym_bridge.policy.samplers.vllm_engine import EngineTransfer, _source
control = ReplicaControl(sys.argv[1], control_client(None))
found = {}
for kind in ("nccl", "ipc"):
    found[kind] = asdict(EngineTransfer(kind, device=torch.device("cuda:0"), from_any_thread=True)._init_info(control))
source = _source([("w", torch.ones(2, 3))])
found["source"] = [[one.name, str(one.dtype), list(one.shape)] for one in source.metadata()] + [name for name, _ in source]
print("FOUND", json.dumps(found))
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [str(vllm_python()), str(tmp_path / "program.py"), servers[0].url],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND ")))
    assert (found["nccl"]["master_address"], found["nccl"]["world_size"], found["nccl"]["rank"]) == ("127.0.0.1", 2, 0)
    assert found["ipc"]["rank"] == 0
    assert found["source"] == [["w", "torch.float32", [2, 3]], "w"]


def label(server: VLLMProcess) -> str:
    return httpx.get(f"{server.url}/weight_info").json()["weight_version"]


def post(server: VLLMProcess, path: str, body: dict) -> None:
    httpx.post(server.url + path, json=body, timeout=60).raise_for_status()
