"""`train` in several processes that torchrun starts: the same command, the same run directory."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gym_bridge.schemas.seams import Loss, TrainedTokens
from tests.api.grpo_stage import LETTERS
from tests.cli.conftest import PATIENCE_S
from tests.cli.test_train_dpo import PAIRS
from tests.policy.ranks_stage import launched

pytestmark = pytest.mark.slow

ROWS = [
    {"messages": [{"role": "user", "content": f"{a}+2?" + " please" * (a % 5)}, {"role": "assistant", "content": f"It is {a + 2}"}]}
    for a in range(20)
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def sft(model: Path, rows: Path, run: Path, *overrides: str) -> list[str]:
    """The command line after `gym-bridge`."""
    own = [
        f"data.train={rows}",
        f"policy.model={model}",
        "policy.lr=1e-3",
        "policy.compute_dtype=float32",
        "algorithm.batch_size=4",
    ]
    return ["train", "sft", "--config", "sft/tiny", *own, f"trainer.output={run}", *overrides, "--quiet"]


def ended(num_ranks: int, argv: list[str]) -> subprocess.CompletedProcess[str]:
    """How the command ended on so many processes."""
    command = launched(num_ranks, "-m", "gym_bridge", *argv)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=4 * PATIENCE_S)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, from all its files."""
    last = max((run / "checkpoints").iterdir())
    return {name: one for file in (last / "model").glob("*.safetensors") for name, one in load_file(file).items()}


def test_a_run_goes_on_with_another_number_of_processes_from_every_checkpoint(gym_bridge, tiny_qwen3, rows, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert gym_bridge(*sft(tiny_qwen3, rows, whole, "algorithm.epochs=2")).code == 0
    together = "policy.tensor_parallel_size=2", "policy.sequence_parallel=true"
    shared = ("policy.context_parallel_size=2",)
    for num_ranks, max_steps, layout in ((2, 3, ()), (1, 5, ()), (4, 8, together), (2, 9, together[:1]), (2, 10, shared)):
        argv = sft(tiny_qwen3, rows, cut, "algorithm.epochs=2", f"trainer.max_steps={max_steps}", *layout)
        if num_ranks > 1:
            found = ended(num_ranks, argv)
            assert found.returncode == 0, found.stderr
            assert found.stdout == f"{cut}: done after {max_steps} steps; checkpoint {cut}/checkpoints/step_{max_steps:08d}\n"
        else:
            assert gym_bridge(*argv).code == 0
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-4)
    expected = weights(whole)
    found = weights(cut)
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("verb", "layout"), [("dpo", ()), ("rm", ("policy.context_parallel_size=2",))])
def test_preferences_train_as_in_one_process(gym_bridge, tiny_llama, tmp_path, verb, layout):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    own = [f"data.train={data}", f"policy.model={tiny_llama}", "policy.compute_dtype=float32", "policy.lr=1e-3"]
    argv = ["train", verb, "--config", f"{verb}/tiny", *own, "algorithm.batch_size=4", "algorithm.epochs=2", "--quiet"]
    assert gym_bridge(*argv, f"trainer.output={tmp_path / 'alone'}").code == 0
    found = ended(2, [*argv, *layout, f"trainer.output={tmp_path / 'both'}"])
    assert found.returncode == 0, found.stderr
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)
    assert len(losses(tmp_path / "both")) == 4


def test_adapters_in_shards_go_on_with_any_number_of_processes_as_peft_stores_them(gym_bridge, tiny_qwen3, rows, tmp_path):
    whole, cut, lora = tmp_path / "whole", tmp_path / "cut", "policy.lora.rank=4"
    assert gym_bridge(*sft(tiny_qwen3, rows, whole, "algorithm.epochs=2", lora)).code == 0
    for num_ranks, max_steps in ((2, 3), (1, 5), (2, 10)):
        argv = sft(tiny_qwen3, rows, cut, "algorithm.epochs=2", lora, f"trainer.max_steps={max_steps}")
        found = gym_bridge(*argv) if num_ranks == 1 else ended(num_ranks, argv)
        assert (found.code if num_ranks == 1 else found.returncode) == 0, found
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-4)
    adapters = [
        load_file(run / "checkpoints" / "step_00000010" / "trainer" / "adapter" / "adapter_model.safetensors")
        for run in (whole, cut)
    ]
    for expected, tensors in ([weights(whole), weights(cut)], adapters):
        assert tensors.keys() == expected.keys()
        for name, one in expected.items():
            torch.testing.assert_close(tensors[name], one, atol=1e-4, rtol=1e-3)


def test_policy_and_value_model_in_shards_play_and_learn_and_their_checkpoints_are_plain_models(gym_bridge, tiny_llama, tmp_path):
    run, tasks = tmp_path / "run", tmp_path / "tasks.jsonl"
    row = {"responses_create_params": {"input": [{"role": "user", "content": "Say it"}]}}
    tasks.write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    own = [f"policy.model={tiny_llama}", "policy.lr=1e-3", "policy.compute_dtype=float32", f"env.server={LETTERS}:Letters"]
    sizes = [f"data.train={tasks}", "algorithm.tasks_per_step=4", "algorithm.group_size=4", "sampler.max_tokens=6"]
    argv = ["train", "grpo", *own, *sizes, "algorithm=ppo", "algorithm.overlong_filter=false", "algorithm.beta=0.01"]
    found = ended(2, [*argv, "trainer.max_steps=2", f"trainer.output={run}", "--quiet"])
    assert found.returncode == 0, found.stderr
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in steps] == [1, 2]
    assert all(abs(one["gap"] - 1) < 1e-4 for one in steps)  # the sampler plays the weights that are trained
    assert gym_bridge("checkpoint", "inspect", run).code == 0
    more = gym_bridge(*argv, "trainer.max_steps=3", f"trainer.output={run}", "--quiet", "--json")
    assert (more.code, json.loads(more.out)["steps"]) == (0, 3)


def started(argv: list[str], run: Path) -> subprocess.Popen[str]:
    """The command on two processes, once it has taken three steps."""
    process = subprocess.Popen(launched(2, "-m", "gym_bridge", *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not (run / "metrics.jsonl").exists() or len(losses_so_far(run)) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def losses_so_far(run: Path) -> list[bytes]:
    return [line for line in (run / "metrics.jsonl").read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def workers(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of the ranks."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            environment = dict(one.partition("=")[::2] for one in (directory / "environ").read_text().split("\0"))
        except OSError:
            continue
        if parent == process.pid and "RANK" in environment:
            found[int(environment["RANK"])] = int(directory.name)
    return found


def test_sigterm_saves_and_the_same_command_goes_on(gym_bridge, tiny_llama, rows, tmp_path):
    run = tmp_path / "run"
    process = started(sft(tiny_llama, rows, run, "algorithm.epochs=100000"), run)
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE_S)
    taken = len(losses_so_far(run))
    assert f"stopped by SIGTERM after {taken} steps" in out, err
    argv = sft(tiny_llama, rows, run, "algorithm.epochs=100000", f"trainer.max_steps={taken + 2}", "--json")
    assert json.loads(gym_bridge(*argv).out)["steps"] == taken + 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_and_the_last_checkpoint_stays_good(gym_bridge, tiny_llama, rows, tmp_path, rank):
    run = tmp_path / "run"
    process = started(sft(tiny_llama, rows, run, "algorithm.epochs=100000", "trainer.save_every=1"), run)
    ranks = workers(process)
    subprocess.run(["kill", f"-{signal.SIGKILL}", str(ranks[rank])], check=True)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert "internal error" not in err
    if rank == 1:
        assert "gym-bridge: another process of this training has ended; its own message tells why" in err
    steps = int(max((run / "checkpoints").glob("step_*")).name.removeprefix("step_"))
    argv = sft(tiny_llama, rows, run, "algorithm.epochs=100000", "trainer.save_every=1", f"trainer.max_steps={steps + 2}", "--json")
    assert json.loads(gym_bridge(*argv).out)["steps"] == steps + 2


def poisoned(settings):
    """A loss that cannot be computed for one of the rows, whichever process has it."""

    def loss(logprobs: torch.Tensor, columns: TrainedTokens) -> Loss:
        if (columns.weights == 7).any():
            raise ValueError("no loss for this row")
        return Loss(-logprobs.sum() / columns.num_tokens)

    return loss


@pytest.mark.parametrize("row", [1, 2])
def test_a_failure_of_one_process_alone_ends_all_of_them_soon(tiny_llama, rows, tmp_path, row):
    weighted = tmp_path / "weighted.jsonl"
    weighted.write_text("".join(json.dumps({**one, "w": 7 if index == row else 1}) + "\n" for index, one in enumerate(ROWS)))
    own = [f"algorithm.loss={__name__}:poisoned", "data.weight=w", "trainer.save_every=1", "algorithm.batch_size=2"]
    started_at = time.monotonic()
    found = ended(2, sft(tiny_llama, weighted, tmp_path / "run", *own))
    assert time.monotonic() - started_at < PATIENCE_S
    assert "no loss for this row" in found.stderr
    assert found.returncode != 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.lora.rank=4", "policy.tensor_parallel_size=2"], "policy.lora: adapters of layers that are cut are not built"),
        (["policy.learning_rate=1"], "unknown key 'policy.learning_rate'"),
        (["policy.device=cuda"], "policy.device=cuda"),  # which all of them find out
    ],
)
def test_what_several_processes_cannot_do_is_one_line(tiny_llama, rows, tmp_path, overrides, message):
    found = ended(2, sft(tiny_llama, rows, tmp_path / "run", *overrides))
    lines = [line for line in found.stderr.splitlines() if line.startswith("gym-bridge: ")]
    assert len(lines) == 1, found.stderr
    assert message in lines[0]
    assert "exitcode  : 2" in found.stderr
