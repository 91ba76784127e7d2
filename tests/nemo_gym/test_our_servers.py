"""NeMo Gym drives our servers: its SimpleAgent, and the whole `ng_collect_rollouts`, give the rewards that our collector gives."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from gym_bridge.cli.main import main
from gym_bridge.io.rollout_reader import view_row
from gym_bridge.resource_servers.process import ServerProcess
from gym_bridge.resource_servers.registry import load_server
from gym_bridge.schemas.rollouts import Row
from tests.nemo_gym.conftest import NemoGym, nemo_gym_serving
from tests.nemo_gym.playing import by_agent, direct, numbered
from tests.nemo_gym.replay import Lines, ModelServer, prompt_of_row
from tests.rollouts.stage import called, said

pytestmark = pytest.mark.nemo_gym

OURS = ("calculator", "math", "office")


@pytest.fixture(scope="module")
def driven(nemo_gym_venv: Path, model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NemoGym]:
    """Agents of NeMo Gym before servers of ours."""
    pytest.importorskip("math_verify", reason="math needs the servers extra")
    with ExitStack() as stack:
        names = [f"{name}={stack.enter_context(ServerProcess(name)).url}" for name in OURS]
        directory = tmp_path_factory.mktemp("driven")
        yield stack.enter_context(nemo_gym_serving(nemo_gym_venv, model_server, names, directory))


def lines_of(task: Row, *, right: bool) -> Lines:
    """The calls that solve a task, one a turn, and an answer; a wrong rollout leaves out the last call or answers wrong."""
    calls = [[called(one["name"], one["arguments"], f"c{number}")] for number, one in enumerate(task.get("ground_truth", []))]
    answer = task.get("expected_answer", "done")
    if "question" in task:
        return [[said(f"\\boxed{{{answer if right else '-77777'}}}")]]
    return [*(calls if right else calls[:-1]), [said(answer)]]


@pytest.mark.parametrize("name", OURS)
def test_simple_agent_gives_the_rewards_that_we_give(name: str, driven: NemoGym, model_server: ModelServer):
    tasks = list(load_server(name).tasks(num_tasks=4, seed=3, split="train"))
    for right in (True, False):
        scripts = {prompt_of_row(task): lines_of(task, right=right) for task in tasks}
        ours = direct(driven.resources[name], scripts, numbered(tasks))
        theirs = by_agent(driven.agents[name], model_server, scripts, numbered(tasks))
        assert [row["reward"] for row in ours] == [row["reward"] for row in theirs] == [float(right)] * 4


def test_ng_collect_rollouts_writes_rows_of_our_servers_with_our_rewards(
    driven: NemoGym, nemo_gym_venv: Path, model_server: ModelServer, tmp_path: Path
):
    """Two tasks a server, of which the model solves the first; each is played twice."""
    tasks = [(name, task) for name in OURS for task in load_server(name).tasks(num_tasks=2, seed=5, split="train")]
    agents = [{"type": "responses_api_agents", "name": f"{name}_agent"} for name, _ in tasks]
    model_server.scripts = {prompt_of_row(task): lines_of(task, right=number % 2 == 0) for number, (_, task) in enumerate(tasks)}
    given, rollouts, dataset = tmp_path / "tasks.jsonl", tmp_path / "rollouts.jsonl", tmp_path / "sft.jsonl"
    lines = [orjson.dumps({**task, "agent_ref": agent}) for (_, task), agent in zip(tasks, agents, strict=True)]
    given.write_bytes(b"\n".join(lines))
    collect_with_nemo_gym(nemo_gym_venv, driven.head, given, rollouts)

    rows = [orjson.loads(line) for line in rollouts.read_bytes().splitlines()]
    rewards = {(row["_ng_task_index"], row["_ng_rollout_index"]): row["reward"] for row in rows}
    assert len(rows) == 12
    assert rewards == {(task, repeat): float(task % 2 == 0) for task in range(6) for repeat in range(2)}
    assert [row["agent_ref"] for row in rows] == [agents[row["_ng_task_index"]] for row in rows]
    assert (tmp_path / "rollouts_failures.jsonl").read_bytes() == b""
    views = [view_row(row) for row in rows]
    assert [view.drop_reason() for view in views] == [None] * 12
    assert len({view.task for view in views}) == 6
    (told,) = {row["num_steps_done"] for row in rows if row["_ng_task_index"] == 0}  # our verifier's own fields came through
    assert told == len(tasks[0][1]["steps"])

    aggregates = json.loads((tmp_path / "rollouts_aggregate_metrics.json").read_text())
    assert {one["agent_ref"]["name"]: one["agent_metrics"]["mean/reward"] for one in aggregates} == {
        "calculator_agent": 0.5,
        "math_agent": 0.5,
        "office_agent": 0.5,
    }
    with pytest.raises(SystemExit) as ended:
        main(["transform", str(rollouts), "--to", "sft", "--output", str(dataset), "--quiet"])
    assert not ended.value.code
    assert len(dataset.read_bytes().splitlines()) == 6


def collect_with_nemo_gym(venv: Path, head_url: str, tasks: Path, output: Path) -> None:
    """Run NeMo Gym's collector; it finds the agents that rows name at the head server."""
    head = urlsplit(head_url)
    words = [f"+head_server.host={head.hostname}", f"+head_server.port={head.port}", f"+input_jsonl_fpath={tasks}"]
    words += [f"+output_jsonl_fpath={output}", "+num_repeats=2", "+upload_rollouts_to_wandb=false"]
    command = [str(venv / "bin" / "ng_collect_rollouts"), *words]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=output.parent, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
