"""Reinforcement learning where something is wrong: it waits and goes on, or it stops and says what to do."""

import json
import shutil
import threading
import time

import pytest
import torch

from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.policy.samplers.local import LocalSampler
from gym_bridge.resource_servers.process import ServerProcess
from gym_bridge.schemas.tokens import Completion
from tests.api.grpo_stage import LETTERS, rows, run, steps


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    write_jsonl(path, [{"responses_create_params": {"input": f"Say {n}"}} for n in range(8)])
    return path


def restarted_when(condition, *, away_s):
    """A server, one that stands in its place `away_s` after it is ended, once `condition()`, and the thread that does so."""
    server = ServerProcess(f"{LETTERS}:Letters").__enter__()

    def restart():
        while not condition():
            time.sleep(0.002)
        server.__exit__(None, None, None)
        time.sleep(away_s)
        again.append(ServerProcess(f"{LETTERS}:Letters", port=int(server.url.rpartition(":")[2])).__enter__())

    again: list[ServerProcess] = []
    thread = threading.Thread(target=restart)
    thread.start()
    return server, again, thread


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_waited_for(tiny_llama, tmp_path, tasks):
    metrics = tmp_path / "run" / "metrics.jsonl"
    server, again, thread = restarted_when(lambda: metrics.exists() and metrics.stat().st_size > 0, away_s=6)
    try:
        result = run(tiny_llama, tmp_path / "run", f"env.server={server.url}", f"data.train={tasks}", "trainer.max_steps=12")
    finally:
        thread.join()
        again[0].__exit__(None, None, None)
    assert result.steps == 12
    assert [one["step"] for one in steps(tmp_path / "run")] == list(range(1, 13))
    assert max(one["rollouts_s"] for one in rows(metrics)) > 5  # one batch waited


@pytest.mark.slow
def test_a_server_that_stays_away_stops_the_training_which_goes_on_later(tiny_llama, tmp_path, tasks):
    metrics = tmp_path / "run" / "metrics.jsonl"
    server, again, thread = restarted_when(lambda: metrics.exists() and metrics.stat().st_size > 0, away_s=8)
    fixed = [f"env.server={server.url}", f"data.train={tasks}", "trainer.max_steps=500", "policy.lr=1e-6"]
    with pytest.raises(ServerError, match="gone"):
        run(tiny_llama, tmp_path / "run", *fixed, "env.patience_s=2")
    before = len(steps(tmp_path / "run"))
    assert before >= 1  # what was trained is saved
    thread.join()
    try:
        result = run(tiny_llama, tmp_path / "run", *fixed, "env.patience_s=2", "trainer.max_time_s=1")
    finally:
        again[0].__exit__(None, None, None)
    assert result.steps > before
    assert [one["step"] for one in steps(tmp_path / "run")] == list(range(1, result.steps + 1))


def test_megabytes_from_an_environment_end_their_rollouts_whose_turns_before_train(tiny_llama, tmp_path, tasks):
    result = run(tiny_llama, tmp_path / "run", f"data.train={tasks}", f"env.server={LETTERS}:Verbose")
    assert result.steps == 2
    for one in steps(tmp_path / "run"):
        assert (one["num_turns"], one["truncated"], one["num_failed"]) == (1.0, 1.0, 0)
        assert one["gap"] == pytest.approx(1.0, abs=1e-4)


class SilentSampler(LocalSampler):
    """Answers every other rollout with nothing but the token that ends a turn, at its true log-prob."""

    def __init__(self, policy, settings, **options):
        super().__init__(policy.module, max_batch=settings.max_batch, version=policy.version)

    async def sample(self, prompt_ids, params, *, key):
        if key.rollout_index % 2:
            return await super().sample(prompt_ids, params, key=key)
        ended = params.stop_token_ids[0]
        with torch.no_grad():
            logits = self.module(torch.tensor([list(prompt_ids)])).logits[0, -1]
        logprob = float(logits.float().log_softmax(-1)[ended])
        return Completion(ids=(ended,), logprobs=(logprob,), finish_reason="stop", policy_version=self.version)


def test_an_empty_completion_is_an_answer_of_one_token_and_trains(tiny_llama, tmp_path, tasks):
    chosen = [f"data.train={tasks}", f"sampler.kind={__name__}:SilentSampler"]
    assert run(tiny_llama, tmp_path / "run", *chosen).steps == 2
    for one in steps(tmp_path / "run"):
        assert (one["completion_tokens_min"], one["num_failed"], one["num_trained_tokens"]) == (1, 0, 8 * one["completion_tokens"])
        assert one["gap"] == pytest.approx(1.0, abs=1e-4)
    texts = [row["response"]["output"][0]["content"][0]["text"] for row in rows(tmp_path / "run" / "rollouts.jsonl")]
    assert "" in texts


def test_a_policy_without_a_chat_template_is_told_of_renderers(tiny_llama, tmp_path, tasks):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_llama, bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    file = bare / "tokenizer_config.json"
    file.write_text(json.dumps({name: one for name, one in json.loads(file.read_text()).items() if name != "chat_template"}))
    with pytest.raises(ConfigError, match="neither its chat template nor its name tells how to render for it; name a renderer"):
        run(bare, tmp_path / "run", f"data.train={tasks}")


def test_a_group_of_one_needs_no_sibling_only_where_nothing_is_compared(tiny_llama, tmp_path, tasks):
    alone = [f"data.train={tasks}", "algorithm.group_size=1"]
    with pytest.raises(ConfigError, match="a rollout without siblings has no advantage"):
        run(tiny_llama, tmp_path / "run", *alone)
    assert run(tiny_llama, tmp_path / "run", *alone, "algorithm.baseline=none", "algorithm.scale=none").steps == 2
    assert run(tiny_llama, tmp_path / "ppo", *alone, "algorithm=ppo").steps == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("env.server=nowhere", "unknown resource server 'nowhere'"),
        ("data.rollouts=x.jsonl", "expected one of data.train, data.rollouts, data.groups and data.replay"),
        (
            "env.agent_url=http://127.0.0.1:1 env.head_url=http://127.0.0.1:2",
            "expected one of env.server, env.agent_url, env.head_url and env.gym_configs",
        ),
        ("sampler.kind=vllm", "sampler.kind=vllm needs sampler.url"),
        ("sampler.sleep=true", "sampler.sleep has no effect on sampler.kind=local; it is for vllm"),
        ("algorithm.correction=tis", "algorithm.correction has no effect on algorithm.old_logprobs=sampler; it is for trainer"),
        ("algorithm.kl_in=reward", "algorithm.kl_in has no effect without algorithm.beta"),
        (
            "algorithm.component_weights.a=1",
            "algorithm.component_weights has no effect on algorithm.estimator=group; it is for components",
        ),
        ("algorithm.estimator=gea", "algorithm.estimator='gea': one of group, components, gae, teacher"),
        ("algorithm=ppo overlap.max_staleness=1", "algorithm.old_logprobs=trainer leaves the age of overlap.max_staleness"),
        ("env.cohort=true sampler.lockstep=true", "sampler.lockstep waits until all rollouts in flight ask for a turn"),
        ("env.concurrency=4 sampler.lockstep=true", "sampler.lockstep needs env.concurrency >= 8, a whole batch, got 4"),
        (
            "env.concurrency=8 sampler.lockstep=true overlap.max_staleness=2",
            "sampler.lockstep needs env.concurrency >= 24, the 3 batches of overlap.max_staleness=2, got 8",
        ),
        ("data.num_tasks=9", "data.num_tasks has no effect with data.train: no task is made"),
        ("env.policy_address=127.0.0.1:8765", "env.policy_address has no effect with env.server: no agent plays"),
        ("overlap.in_flight_updates=true", "overlap.in_flight_updates has no effect without overlap.max_staleness"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(override, told, tiny_llama, tmp_path, tasks):
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        run(tiny_llama, tmp_path / "run", f"data.train={tasks}", *override.split())
