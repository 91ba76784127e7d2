"""The benchmarks run, at sizes that say nothing of speed."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from benchmarks import collect, grpo, loggers, resource_servers, train, view
from benchmarks.event_loop_lag import EVERY_S, weighted_percentile
from benchmarks.processes import null_server

pytestmark = pytest.mark.slow

TINY = ["--turns", "1", "--rollouts", "20", "--concurrency", "4", "--in-flight", "20", "--model-delay-s", "0.1"]


@pytest.mark.parametrize("part", ["rate", "in-flight", "memory", "workers"])
def test_a_part_completes_its_rollouts_and_prints_a_table(part: str, capsys: pytest.CaptureFixture[str]):
    collect.main([part, *TINY, "--memory-rollouts", "1000"])
    head, _, first, *_ = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(first.split("|")) == len(head.split("|"))
    if part in ("in-flight", "memory"):
        assert ("| 20 | 20 |" if part == "in-flight" else "| 1000 |") in first


def test_a_part_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        collect.main(["speed"])
    assert "no part 'speed'" in capsys.readouterr().err


@pytest.mark.parametrize(("server", "num_calls"), [("calculator", 40 * 6), ("office", 40 * 7)])
def test_live_sessions_are_all_seeded_before_any_is_worked_on(server: str, num_calls: int, capsys: pytest.CaptureFixture[str]):
    resource_servers.main([server, "--sessions", "40"])
    head, _, row = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = dict(zip((name.strip() for name in head), map(float, row), strict=True))
    assert (found["sessions"], found["calls"]) == (40, num_calls)
    assert 0 < found["before MiB"] <= found["seeded MiB"] <= found["worked on MiB"] <= found["peak MiB"]


def test_the_viewer_is_timed_on_a_file_of_its_own(capsys: pytest.CaptureFixture[str]):
    view.main(["--rows", "400", "--gib", "0.004"])
    told = capsys.readouterr().out
    assert told.startswith("400 rows, 0.00 GiB")
    assert "| a rollout: median, slowest of 100 |" in told
    assert "| text that one row has |" in told


def test_loggers_are_timed_beside_none(tiny_llama: Path, capsys: pytest.CaptureFixture[str]):
    loggers.main(["--model", str(tiny_llama), "--turns", "1", "--steps", "3"])
    names = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert names[2:] == ["write_ms", "step_ms", "whole_ms"]


@pytest.mark.nemo_gym
def test_resource_servers_are_asked_the_same_in_turns(capsys: pytest.CaptureFixture[str]):
    if "GYM_BRIDGE_NEMO_GYM_VENV" not in os.environ:
        pytest.skip("the part asks real NeMo Gym: name its venv in GYM_BRIDGE_NEMO_GYM_VENV")
    resource_servers.main(["rate", "--turns", "1", "--requests", "20", "--concurrency", "2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2 |")]
    assert [line.split("|")[2].strip() for line in lines] == ["/seed_session", "/get_weather", "/verify"]


@pytest.mark.parametrize(("kind", "sides"), [("sft", ("ours", "bare", "trl")), ("dpo", ("ours", "bare"))])
def test_all_sides_of_a_training_begin_with_the_same_loss(kind: str, sides: tuple[str, ...], tiny_llama: Path, capsys):
    pytest.importorskip("trl")
    sizes = ["--turns", "1", "--steps", "1", "--batch-size", "2", "--longest", "64", "--microbatch-tokens", "64"]
    train.main([kind, "--model", str(tiny_llama), *sizes, "--sides", *sides])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    head, rows = [cell.strip() for cell in lines[0]], [[cell.strip() for cell in line] for line in lines[2:]]
    assert [row[0] for row in rows] == list(sides)
    first = [float(row[head.index("loss, first step")]) for row in rows]
    assert first[:2] == pytest.approx([first[0]] * 2, abs=1e-3)  # TRL packs other rows into its first step
    assert all(float(row[head.index("peak MiB")]) > 0 for row in rows)


def cells(printed: str) -> list[dict[str, str]]:
    """The rows of a table, by the names of its columns."""
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]
    return [dict(zip(head, one, strict=True)) for one in rows]


def test_both_sides_of_online_training_take_their_steps(tiny_llama: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("trl")
    grpo.main(["step", "--model", str(tiny_llama), "--turns", "1", "--steps", "1", "--sides", "ours", "trl"])
    ours, trl = cells(capsys.readouterr().out)
    assert (ours["side"], trl["side"]) == ("ours", "trl")
    for side in (ours, trl):
        assert 0 < float(side["tokens a completion"]) <= 25
        assert 0 < float(side["reward"]) < 1
        assert float(side["peak MiB"]) > 0


def test_sharing_a_prompt_leaves_the_gradients_what_they_are(tiny_llama: Path, capsys: pytest.CaptureFixture[str]):
    sizes = ["--turns", "1", "--steps", "1", "--prefix-prompt", "200", "--prefix-completion", "8"]
    grpo.main(["prefix", "--model", str(tiny_llama), *sizes])
    (found,) = cells(capsys.readouterr().out)
    assert (found["prompt"], found["completions"]) == ("200", "8 x 8")
    assert float(found["gradients differ by"]) < 1e-3


def test_gradients_that_differ_end_the_benchmark(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(grpo.EQUAL, "float32", -1.0)
    with pytest.raises(SystemExit, match="the gradients differ by"):
        grpo.main(["prefix", "--model", str(tiny_llama), "--turns", "1", "--steps", "1", "--prefix-prompt", "20"])


def test_a_sampler_that_waits_plays_synchronous_and_asynchronous_steps(tiny_llama: Path, capsys: pytest.CaptureFixture[str]):
    grpo.main(["pipeline", "--model", str(tiny_llama), "--turns", "1", "--steps", "2"])
    (found,) = cells(capsys.readouterr().out)
    assert all(float(one) > 0 for one in found.values())


def test_steps_over_one_rank_are_timed_beside_those_of_one_process(tiny_llama: Path):
    command = [sys.executable, "-m", "benchmarks.shards", "--model", str(tiny_llama), "--turns", "2", "--tokens", "16"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # ranks are joined once in a process
    assert float(re.findall(r"one rank / one process: ([\d.]+)", found.stdout)[0]) > 0


def test_algorithms_are_tuned_alike_and_measured_until_they_reach_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from benchmarks import algorithms

    monkeypatch.setattr(algorithms, "RATES", (4e-3,))
    monkeypatch.setattr(algorithms, "EVERY", 5)
    monkeypatch.setattr(algorithms, "AT_ONCE", 15)
    algorithms.main(["--batches", "30", "--target", "0.3", "--seeds", "0", "--curves", str(tmp_path / "curves.jsonl")])
    curves = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [one["algorithm"] for one in curves] == ["GRPO", "PPO", "REINFORCE"]
    for one in curves:
        reached = [batches for batches, reward in one["curve"][:4] if reward >= 0.3]  # then the second half is not made
        assert [batches for batches, _ in one["curve"]] == list(range(0, 16 if reached else 31, 5))
    measured = {
        cells[0]: cells[3:5] for line in capsys.readouterr().out.splitlines() if len(cells := line.strip("| ").split(" | ")) == 7
    }
    for one in curves:
        first = next((batches for batches, reward in one["curve"] if reward >= 0.3), None)
        updates = "" if first is None else str(first * (4 if one["algorithm"] == "PPO" else 1))
        assert measured[one["algorithm"]][:2] == ([str(first), updates] if first else ["never", ""])


def test_shuffled_siblings_keep_their_groups_advantages_in_another_order():
    from benchmarks.shuffled_siblings import shuffled
    from gym_bridge.schemas.rollouts import RolloutKey
    from gym_bridge.schemas.settings import GRPOAlgorithm
    from gym_bridge.trainers.estimator_kinds import group_estimator
    from gym_bridge.trainers.experience import Experience

    def member(task: int, number: int) -> Experience:
        return Experience(key=RolloutKey(task, number), reward=float(number), sequences=(), turn_lengths=())

    groups = [tuple(member(task, number) for number in range(8)) for task in range(3)]
    settings = GRPOAlgorithm()
    true, dealt = group_estimator(settings)(groups), shuffled(settings)(groups)
    assert [sorted(one) for one in dealt] == [pytest.approx(sorted(one)) for one in true]
    assert all(one != other for one, other in zip(true, dealt, strict=True))
    assert shuffled(settings)(groups) == dealt


def test_the_model_of_the_gpu_mode_can_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from benchmarks import train_shapes
    from benchmarks.grpo_models import chat_model
    from gym_bridge.tokens.renderers import load_renderer

    monkeypatch.setitem(train_shapes.SHAPES, "tiny", {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 8})
    monkeypatch.setitem(train_shapes.SHARED, "num_hidden_layers", 1)
    renderer = load_renderer(chat_model(train_shapes.shape("tiny"), tmp_path / "tiny"))
    ids = renderer.render_ids([{"role": "user", "content": "Wie geht es Ihnen?"}], add_generation_prompt=True)
    assert "Wie geht es Ihnen?" in renderer.tokenizer.decode(ids)
    assert renderer.tokenizer.decode([151_935, 151_934]) == "word151676word151675"
    assert renderer.get_stop_token_ids() == [2]


@pytest.mark.parametrize(("name", "params"), [("Qwen3-0.6B", 596_049_920), ("Qwen3-1.7B", 1_720_574_976)])
def test_the_shapes_of_the_gpu_mode_are_those_of_qwen3(name: str, params: int):
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.train_shapes import shape

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(shape(name))
    assert sum(one.numel() for one in module.parameters()) == params


def test_flops_of_a_token_count_parameters_head_and_attention(tiny_llama: Path):
    rows = [{"ids": [3, 4, 5, 6], "num_prompt": 1}, {"ids": [7, 8], "num_prompt": 1}]
    layer = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 64 + 2 * 32  # q, k, v, o, the three of the MLP, two norms
    total = 6 * (2 * layer + 32) * 6 + 6 * 400 * 32 * (3 + 1) + 12 * 2 * 4 * 8 * (4**2 + 2**2)
    assert train.flops_per_token(str(tiny_llama), rows) == pytest.approx(total / 6)


def test_a_long_stall_weighs_as_long_as_it_lasts():
    calm, stall = [0.0] * 98, [EVERY_S * 99]  # 98 calm samples cover 98 intervals, the stall 100
    assert weighted_percentile(calm + stall, 49) == 0.0
    assert weighted_percentile(calm + stall, 50) == pytest.approx(0.99)


def test_the_null_server_wants_its_session_back():
    async def talk() -> tuple[int, int, bytes]:
        with null_server("resources") as server:
            url = server.said["resources"]
            async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
                before = (await session.post(f"{url}/verify", data=b'{"a":1}')).status
                await session.post(f"{url}/seed_session", data=b"{}")
                after = await session.post(f"{url}/verify", data=b'{"a":1}')
                return before, after.status, await after.read()

    assert asyncio.run(talk()) == (400, 200, b'{"a":1,"reward":1.0}')
