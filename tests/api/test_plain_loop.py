"""Without staleness, training is the loop that anybody would write: play a batch, step on it, and nothing at the same time."""

import asyncio
import random
from contextlib import closing

from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.policy.packing import plan_microbatches
from gym_bridge.policy.samplers.local import LocalSampler
from gym_bridge.policy.torch_policy import TorchPolicy
from gym_bridge.rollouts.attempts import Attempts
from gym_bridge.rollouts.collector import RolloutCollector
from gym_bridge.rollouts.concurrency import FixedConcurrency
from gym_bridge.rollouts.http import HttpClient
from gym_bridge.rollouts.limits import Limits
from gym_bridge.rollouts.models.sampled import SampledEndpoint
from gym_bridge.rollouts.players import LocalPlayer
from gym_bridge.rollouts.sessions.seed_verify import SeedVerify
from gym_bridge.rollouts.turn_loop import TurnLoop
from gym_bridge.tokens.renderers import load_renderer
from gym_bridge.tokens.trajectory import build_trajectory, training_sequences
from gym_bridge.trainers.policy_loss import policy_loss
from tests.api.grpo_stage import rows, run, serving_letters, settings, weights

RAW = ["algorithm.baseline=none", "algorithm.scale=none", "sampler.lockstep=true"]  # a rollout's advantage is its reward
NUM_STEPS, TASKS_PER_STEP, GROUP_SIZE = 2, 2, 4


async def play(sampler, model, url, tasks):
    """The groups of `tasks`, in their order, as the collector plays them."""
    http = HttpClient()
    endpoint = SampledEndpoint(sampler, load_renderer(model), max_tokens=6, model="tiny")
    loop = TurnLoop(endpoint=endpoint, limits=Limits(), seed=0)
    environment = SeedVerify(url=url, http=http, loop=loop, request_timeout_s=20)
    player = LocalPlayer(Attempts(environment=environment, timeout_s=20), closers=[http.close])
    collector = RolloutCollector(player, concurrency=FixedConcurrency(64))
    waiting = TASKS_PER_STEP * GROUP_SIZE

    def told(_, num_ended):
        nonlocal waiting
        waiting -= num_ended
        sampler.expect(waiting)

    sampler.expect(waiting)
    try:
        groups = {group.task_index: group async for group in collector.groups(tasks, group_size=GROUP_SIZE, told=told)}
    finally:
        await collector.close()
    return [groups[task["_ng_task_index"]] for task in tasks]


def test_a_staleness_of_0_is_the_plain_loop(tiny_llama, tmp_path):
    tasks = [{"responses_create_params": {"input": f"Say {number}"}, "_ng_task_index": number} for number in range(8)]
    write_jsonl(tmp_path / "tasks.jsonl", tasks)
    order = list(range(8))
    random.Random("0-0").shuffle(order)  # of the first pass, with seed 0
    with serving_letters() as url:
        given = [f"env.server={url}", f"data.train={tmp_path / 'tasks.jsonl'}", f"trainer.max_steps={NUM_STEPS}", *RAW]
        run(tiny_llama, tmp_path / "run", *given)
        chosen = settings(tiny_llama, tmp_path / "plain", *given)
        policy = TorchPolicy(tiny_llama, chosen.policy)
        rewards = {}
        with closing(LocalSampler(policy.module, lockstep=True)) as sampler:
            for step in range(NUM_STEPS):
                sampler.push(policy.weights(), policy.version)
                batch = [tasks[place] for place in order[TASKS_PER_STEP * step :][:TASKS_PER_STEP]]
                groups = asyncio.run(play(sampler, tiny_llama, url, batch))
                rewards |= {tuple(one.key): one.reward for group in groups for one in group.rollouts}
                sequences = [
                    (sequence,)
                    for group in groups
                    for one in group.rollouts
                    for sequence in training_sequences(build_trajectory(one.key, one.turns), advantage=one.reward)
                ]
                policy.step(plan_microbatches(sequences, max_tokens=chosen.policy.microbatch_tokens), policy_loss(chosen))
    policy.save(tmp_path / "plain", source_state={})
    found = {(one["_ng_task_index"], one["_ng_rollout_index"]): one["reward"] for one in rows(tmp_path / "run" / "rollouts.jsonl")}
    assert found == rewards
    assert weights(tmp_path / "run") == (tmp_path / "plain" / "model" / "model.safetensors").read_bytes()
