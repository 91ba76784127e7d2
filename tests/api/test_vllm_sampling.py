"""Both halves of sampler.kind=vllm together, over servers that answer as vLLM does."""

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from gym_bridge.api.vllm_sampling import vllm_sampler
from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.schemas.settings import SamplerSettings
from gym_bridge.schemas.tokens import SampleKey, SamplingParams
from tests.policy.stage import open_policy
from tests.policy.vllm_stage import VLLMServer, free_port, vllm_servers

PARAMS = SamplingParams(max_tokens=4)


def opened(policy, *servers: VLLMServer, run: Path, **settings):
    """The sampler over servers, in lock step with the trainer; without patience."""
    urls = tuple(f"{one.url}/v1" for one in servers)
    return vllm_sampler(policy, SamplerSettings(kind="vllm", url=urls, **settings), overlaps=False, run=run, patience_s=0.0)


def sampled(sampler, num_tasks: int = 8):
    """Completions of as many tasks, side by side."""

    async def run():
        keys = [SampleKey(0, task, 0, 0) for task in range(num_tasks)]
        return await asyncio.gather(*(sampler.sample((7, 8), PARAMS, key=key) for key in keys))

    return asyncio.run(run())


def test_what_is_sampled_has_the_version_and_the_weights_that_were_pushed(tiny_llama, tmp_path: Path):
    policy = open_policy(tiny_llama)
    with vllm_servers(*(servers := (VLLMServer(), VLLMServer()))), closing(opened(policy, *servers, run=tmp_path)) as sampler:
        assert sampler.version == -1
        for version in (3, 4):
            sampler.push(policy.weights(), version)
            assert {one.policy_version for one in sampled(sampler)} == {version}
        assert sampler.version == 4
        names = {name for name, _ in policy.weights()}
        assert [set(one.loaded) for one in servers] == [names, names]
        assert all(one.bodies for one in servers)
    assert not (tmp_path / "vllm_weights").exists()


def test_servers_join_and_leave_by_a_file_while_the_policy_trains(tiny_llama, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gym_bridge.io.server_list.LOOK_S", 0.0)
    policy = open_policy(tiny_llama)
    first, second, wrong = (VLLMServer(first=one) for one in (7.0, 9.0, 5.0))
    wrong.dev_mode = False
    file = tmp_path / "servers.txt"
    with vllm_servers(first, second, wrong):
        file.write_text(f"{first.url}\n")
        settings = SamplerSettings(kind="vllm", url=(str(file),))
        with closing(vllm_sampler(policy, settings, overlaps=False, run=tmp_path, patience_s=0.0)) as sampler:
            sampler.push(policy.weights(), 3)
            (pushed,) = {one.logprobs for one in sampled(sampler)}
            file.write_text(f"{first.url}\n{second.url}/v1\n{wrong.url}\n")
            assert {(one.policy_version, one.logprobs) for one in sampled(sampler)} == {(3, pushed)}
            assert second.bodies  # it got the weights when it was asked first
            assert not wrong.bodies
            sampler.ensure(3)  # one that was started without the routes ends no training under way
            first.stop()
            file.write_text(f"{second.url}/v1\n")
            calls = len(second.bodies)
            sampler.ensure(3)
            sampler.push(policy.weights(), 4)
            assert {one.policy_version for one in sampled(sampler)} == {4}
            assert len(second.bodies) == calls + 8


def test_no_completion_of_a_server_that_came_back_with_other_weights_is_kept(tiny_llama, tmp_path: Path):
    policy = open_policy(tiny_llama)
    with vllm_servers(server := VLLMServer()), closing(opened(policy, server, run=tmp_path)) as sampler:
        sampler.push(policy.weights(), 3)
        (pushed,) = {one.logprobs for one in sampled(sampler)}
        server.stop()
        server.start()  # nobody tells
        found = sampled(sampler)
        assert {(one.policy_version, one.logprobs) for one in found} == {(3, pushed)}
        assert pushed != (-server.first,)


def test_weights_are_laid_down_apart_from_all_that_stands_in_a_directory_of_the_user(tiny_llama, tmp_path: Path):
    policy, theirs = open_policy(tiny_llama), tmp_path / "theirs" / "precious"
    theirs.mkdir(parents=True)
    with vllm_servers(server := VLLMServer()):
        for run in ("a", "b"):
            with closing(opened(policy, server, run=tmp_path / run, weights_directory=tmp_path / "theirs")) as sampler:
                sampler.push(policy.weights(), 1)
                sampler.push(policy.weights(), 2)
                assert len(list((tmp_path / "theirs").iterdir())) == 2
        assert list((tmp_path / "theirs").iterdir()) == [theirs]


def test_a_tied_head_is_known_by_its_name_where_the_server_has_one(tiny_qwen3, tmp_path: Path):
    policy = open_policy(tiny_qwen3)
    with vllm_servers(server := VLLMServer(), other := VLLMServer(modules="Model( (embed_tokens): VocabParallelEmbedding() )")):
        with closing(opened(policy, server, run=tmp_path)) as sampler:
            sampler.push(policy.weights(), 1)
            assert server.loaded["lm_head.weight"] == server.loaded["model.embed_tokens.weight"]
        with closing(opened(policy, other, run=tmp_path)) as sampler:
            sampler.push(policy.weights(), 1)
            assert set(other.loaded) == {name for name, _ in policy.weights()}


def test_a_server_on_a_cpu_is_sent_no_seeds(tiny_llama, tmp_path: Path):
    policy = open_policy(tiny_llama)
    with vllm_servers(server := VLLMServer(), cpu := VLLMServer(modules="(attn): Attention(backend=CPUAttentionBackendImpl)")):
        for one, seeded in ((server, True), (cpu, False)):
            with closing(opened(policy, one, run=tmp_path)) as sampler:
                sampler.push(policy.weights(), 1)
                sampled(sampler, 1)
                assert ("seed" in one.bodies[0]["sampling_params"]) is seeded


@pytest.mark.parametrize("takes_adapters", [True, False])
def test_an_adapter_travels_alone_where_all_servers_take_it_else_merged(tiny_llama, tmp_path: Path, takes_adapters, caplog):
    policy = open_policy(tiny_llama, lora={"rank": 4, "alpha": 8})
    servers = VLLMServer(takes_adapters=True), VLLMServer(takes_adapters=takes_adapters)
    with vllm_servers(*servers), closing(opened(policy, *servers, run=tmp_path)) as sampler:
        sampler.push(policy.weights(), 1)
        assert {one.policy_version for one in sampled(sampler)} == {1}
        assert {body.get("model") for body in servers[0].bodies} == {"gym-bridge-policy" if takes_adapters else None}
        assert ("--enable-lora --max-lora-rank 4" in caplog.text) is not takes_adapters


def test_settings_and_servers_that_cannot_do_it_are_refused_at_once(tiny_llama, tmp_path: Path):
    policy = open_policy(tiny_llama)
    with vllm_servers(server := VLLMServer(), old := VLLMServer(dev_mode=False)):
        with pytest.raises(ConfigError, match="VLLM_SERVER_DEV_MODE=1"):
            opened(policy, old, run=tmp_path)
        with pytest.raises(ConfigError, match=r"sampler\.transfer=nccl sends from a GPU"):
            opened(policy, server, run=tmp_path, transfer="nccl")
        settings = SamplerSettings(kind="vllm", url=(server.url,), sleep=True)
        with pytest.raises(ConfigError, match=r"set overlap\.max_staleness=0"):
            vllm_sampler(policy, settings, overlaps=True, run=tmp_path)
    with pytest.raises(PolicyError, match="no vLLM server answers"):
        opened(policy, VLLMServer(port=free_port()), run=tmp_path)
