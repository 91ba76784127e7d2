"""NeMo Gym's SimpleAgent drives our servers, and gives the rewards that our own collector gives."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

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
