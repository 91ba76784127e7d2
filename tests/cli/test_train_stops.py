"""Ctrl-C, SIGTERM, a spent time budget and a full disk in `train`: one line, the right exit code, and the same command goes on."""

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer, ArithmeticTask, Calculation
from gym_bridge.resource_servers.base import Response, Verdict

from .conftest import PATIENCE_S, Child

pytestmark = pytest.mark.slow

MANY = 100_000
PARITY = f"{__name__}:Parity"
"""The model is random: no sum of it would be right, and without a spread in its rewards nothing trains."""


class Parity(ArithmeticServer):
    """The reward is 1 for an answer with an even number of letters."""

    async def verify(self, task: ArithmeticTask, response: Response, session: Calculation | None) -> Verdict:
        return Verdict(reward=float(len(response.final_text) % 2 == 0))


class Hanging(Parity):
    """It answers 100 times, and then never again."""

    answered = 0

    async def verify(self, task: ArithmeticTask, response: Response, session: Calculation | None) -> Verdict:
        self.answered += 1
        if self.answered > 100:
            await asyncio.sleep(3600)
        return await super().verify(task, response, session)


def tiny(model: Path, run: Path) -> list[str]:
    """Overrides that train the tiny model in `run`."""
    return [f"policy.model={model}", "policy.compute_dtype=float32", f"trainer.output={run}"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "tools": []}
    path.write_text((json.dumps(row) + "\n") * 16)
    return path


@pytest.fixture
def command(request: pytest.FixtureRequest, tiny_llama: Path, tasks: Path, rows: Path) -> Callable[..., list[str]]:
    """`train sft` or `train grpo` into a run directory, with overrides."""

    def build(kind: str, run: Path, *overrides: str) -> list[str]:
        if kind == "sft":
            own = [f"data.train={rows}", f"algorithm.epochs={MANY}"]
        else:
            own = [f"data.train={tasks}", f"env.server={PARITY}", "sampler.max_tokens=4", f"trainer.max_steps={MANY}"]
        return ["train", kind, "--config", f"{'sft' if kind == 'sft' else 'rlvr'}/tiny", *own, *tiny(tiny_llama, run), *overrides]

    return build


def steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith(b"\n")]


def wait_for_steps(run: Path, count: int, running: Child) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(steps(run)) < count:
        assert running.process.poll() is None, running.ended().err
        assert time.monotonic() < deadline, f"only {len(steps(run))} steps were taken"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_ctrl_c_saves_the_steps_taken_and_the_same_command_goes_on(kind, child, command, gym_bridge, rollout_keys, tmp_path: Path):
    run = tmp_path / "run"
    running = child(*command(kind, run, "--quiet"))
    wait_for_steps(run, 3, running)
    running.interrupt()
    ended = running.ended()
    assert ended.code == 130, ended.err
    assert ended.err.lstrip() == "gym-bridge: interrupted; what was done stays on disk, and the same command goes on from there\n"
    taken = steps(run)
    assert taken == list(range(1, len(taken) + 1))
    assert [one.name for one in (run / "checkpoints").iterdir()] == [f"step_{taken[-1]:08d}"]
    more = gym_bridge(*command(kind, run, f"trainer.max_steps={taken[-1] + 2}", "--quiet", "--json"))
    assert (more.code, json.loads(more.out)["steps"]) == (0, taken[-1] + 2)
    assert steps(run) == list(range(1, taken[-1] + 3))
    if kind == "grpo":
        keys = rollout_keys(run / "rollouts.jsonl")
        assert len(keys) == len(set(keys)) >= 8 * steps(run)[-1]


def test_a_second_training_is_kept_out_of_a_run_until_the_first_one_is_killed(child, command, gym_bridge, tmp_path: Path):
    run = tmp_path / "run"
    running = child(*command("sft", run, "--quiet"))
    wait_for_steps(run, 2, running)
    before = steps(run)
    second = gym_bridge(*command("sft", run, "--quiet"))
    assert (second.code, f"{run} is being written by process {running.process.pid}; wait for its end" in second.err) == (2, True)
    assert steps(run)[: len(before)] == before
    running.kill()
    more = gym_bridge(*command("sft", run, "trainer.max_steps=1", "--quiet"))
    assert more.code == 0, more.err


def test_sigterm_saves_and_ends_well_and_the_same_command_goes_on(child, command, gym_bridge, tmp_path: Path):
    run = tmp_path / "run"
    running = child(*command("sft", run, "--quiet"))
    wait_for_steps(run, 3, running)
    running.process.terminate()
    ended = running.ended()
    taken = steps(run)[-1]
    checkpoint = run / "checkpoints" / f"step_{taken:08d}"
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{run}: stopped by SIGTERM after {taken} steps; checkpoint {checkpoint}\n"
    more = gym_bridge(*command("sft", run, f"trainer.max_steps={taken + 2}", "--quiet", "--json"))
    assert (more.code, json.loads(more.out)["steps"], json.loads(more.out)["stopped"]) == (0, taken + 2, "max_steps")
    assert steps(run) == list(range(1, taken + 3))


def test_sigterm_waits_for_no_rollout_that_may_never_end(child, command, gym_bridge, rollout_keys, tmp_path: Path):
    run = tmp_path / "run"
    hanging = f"env.server={__name__}:Hanging"
    running = child(*command("grpo", run, hanging, "--quiet"))
    wait_for_steps(run, 1, running)
    time.sleep(3)
    started = time.monotonic()
    running.process.terminate()
    ended = running.ended()
    assert time.monotonic() - started < 60
    taken = steps(run)[-1]
    assert (ended.code, f"stopped by SIGTERM after {taken} steps" in ended.out) == (0, True), ended.err
    more = gym_bridge(*command("grpo", run, hanging, f"trainer.max_steps={taken + 1}", "--quiet", "--json"))
    assert (more.code, json.loads(more.out)["steps"]) == (0, taken + 1)
    keys = rollout_keys(run / "rollouts.jsonl")
    assert len(keys) == len(set(keys))


def test_a_spent_time_budget_ends_well_and_the_same_command_goes_on(command, gym_bridge, tmp_path: Path):
    run = tmp_path / "run"
    ended = gym_bridge(*command("sft", run, "trainer.max_time_s=0.2", "--quiet"))
    taken = steps(run)[-1]
    assert (ended.code, ended.err) == (0, "")
    assert f"stopped by trainer.max_time_s after {taken} steps" in ended.out
    assert gym_bridge(*command("sft", run, "trainer.max_time_s=0.2", "--quiet")).code == 0
    assert steps(run)[-1] > taken


def test_the_best_checkpoint_is_a_model_and_patience_ends_the_run(command, gym_bridge, rows: Path, tmp_path: Path):
    run = tmp_path / "run"
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(rows.read_text().replace('"4"', '"5"').splitlines()[0])
    watched = ["policy.lr=1e-2", "trainer.validate_every=2", "trainer.patience=2", "trainer.keep_best=true"]
    argv = command("sft", run, f"data.validation.held_out={held_out}", *watched, "--quiet")
    ended = gym_bridge(*argv)
    assert ended.code == 0, ended.err
    assert "stopped early by trainer.patience after " in ended.out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["validation/held_out/loss"] for line in lines if "validation/held_out/loss" in line}
    best = min((loss, step) for step, loss in found.items() if step)[1]
    assert list(found) == list(range(0, best + 5, 2))
    link = run / "checkpoints" / "best"
    assert link.resolve() == run / "checkpoints" / f"step_{best:08d}"
    again = gym_bridge(*command("sft", tmp_path / "more", f"policy.model={link}", "trainer.max_steps=1", "--quiet"))
    assert again.code == 0, again.err


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(kind, command, gym_bridge, tiny_disk: Path):
    run = tiny_disk / "run"
    ended = gym_bridge(*command(kind, run, "trainer.max_steps=2", "--quiet"))
    assert ended.code in (1, 2), ended.err
    assert ended.err.startswith("gym-bridge: cannot ")
    assert "No space left on device" in ended.err
    assert ended.err.count("\n") == 1
    subprocess.run(["mount", "-o", "remount,size=8m", str(tiny_disk)], check=True)
    again = gym_bridge(*command(kind, run, "trainer.max_steps=2", "--quiet", "--json"))
    assert (again.code, json.loads(again.out)["steps"]) == (0, 2)
