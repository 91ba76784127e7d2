"""A tiny model of random weights learns from its rewards, with every seed; from shuffled ones it does not."""

from statistics import fmean

import pytest

from gym_bridge.io.jsonl import write_jsonl
from tests.api.grpo_stage import run, serving_letters, steps

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)


def rise(model, directory, seed, *overrides, num_steps=80):
    """By how much the mean reward of the last five batches is above that of the first five."""
    tasks = directory / "tasks.jsonl"
    write_jsonl(tasks, [{"responses_create_params": {"input": f"Say {number}"}} for number in range(16)])
    fixed = [
        f"data.train={tasks}",
        f"trainer.max_steps={num_steps}",
        f"trainer.seed={seed}",
        "policy.lr=2e-3",
        "algorithm.tasks_per_step=4",
    ]
    run(model, directory / str(seed), *fixed, "algorithm.group_size=8", *overrides)
    rewards = [one["reward"] for one in steps(directory / str(seed)) if "reward" in one]  # the first update on a batch tells it
    print(f"seed {seed}: {rewards[0]:.3f} -> {rewards[-1]:.3f}")
    return fmean(rewards[-5:]) - fmean(rewards[:5])


@pytest.mark.parametrize(("preset", "num_steps"), [("grpo", 80), ("ppo", 200)])  # ppo makes four updates of a batch
def test_the_reward_rises_with_every_seed(preset, num_steps, tiny_llama, tmp_path):
    with serving_letters() as url:
        chosen = [f"env.server={url}", f"algorithm={preset}"]
        found = [rise(tiny_llama, tmp_path, seed, *chosen, num_steps=num_steps) for seed in SEEDS]
    assert min(found) > 0.1


def test_shuffled_rewards_teach_nothing(tiny_llama, tmp_path):
    with serving_letters("--shuffle-rewards") as url:
        found = [rise(tiny_llama, tmp_path, seed, f"env.server={url}", "algorithm=grpo") for seed in SEEDS]
    assert max(found) < 0.1
