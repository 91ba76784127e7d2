"""`collect` against a real resource server and a real chat endpoint, and what becomes of it when one of them stops."""

import json
import os
from pathlib import Path

import pytest


def command(tasks: Path, output: Path, *, server: str, model_url: str, concurrency: int) -> list[object]:
    return [
        *("collect", "--quiet", "--input", tasks, "--output", output, "--server", server, "--concurrency", concurrency),
        *("--model", "adder", "--model-url", model_url, "--model-api", "chat", "--patience-s", 0.5),
    ]


def test_collect_plays_every_task_and_prints_the_ledger(child, chat_model, tasks: Path, tmp_path: Path, rollout_keys):
    output = tmp_path / "rollouts.jsonl"
    argv = command(tasks, output, server="arithmetic", model_url=chat_model().url, concurrency=4)
    ended = child(*argv).ended()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{output}: 6 requested = 6 completed + 0 truncated; mean reward 1.0000\n"
    assert rollout_keys(output) == [(task, 0) for task in range(6)]
    again = child(*argv, "--json").ended()  # nothing is left to do: neither server nor model is asked
    assert json.loads(again.out) == {
        "output": str(output),
        "mean_reward": 1.0,
        "ledger": {"requested": 6, "completed": 6, "truncated": 0, "failed": {}, "not_attempted": 0},
        "stopped": None,
    }


def test_a_server_that_dies_is_one_line_and_the_same_command_goes_on(child, chat_model, tasks: Path, tmp_path: Path, rollout_keys):
    output, model, server = tmp_path / "rollouts.jsonl", chat_model(free_calls=3), child("serve", "arithmetic")
    url = server.address()
    argv = command(tasks, output, server=url, model_url=model.url, concurrency=2)
    collect = child(*argv)
    model.wait_for_calls(5)  # two rollouts are in flight, so three have ended
    server.kill()
    model.release()
    ended = collect.ended()
    assert (ended.code, ended.out) == (1, "")
    warning, error = ended.err.splitlines()
    assert warning.startswith(f"WARNING gym_bridge.rollouts.players: {url} is away: ")
    assert error.startswith(f"gym-bridge: {url}: ")
    assert ended.err.endswith("6 requested = 3 completed + 0 truncated + 3 not attempted; run the same command to go on\n")
    before = rollout_keys(output)
    assert len(before) == 3

    assert child("serve", "arithmetic", "--port", url.rpartition(":")[2]).address() == url
    ended = child(*argv).ended()
    assert (ended.code, ended.err) == (0, "")
    assert rollout_keys(output) == [(task, 0) for task in range(6)]
    assert set(before) < set(rollout_keys(output))


def test_ctrl_c_keeps_what_was_collected_and_the_same_command_goes_on(child, chat_model, tasks, tmp_path: Path, rollout_keys):
    output, model, url = tmp_path / "rollouts.jsonl", chat_model(free_calls=2), child("serve", "arithmetic").address()
    argv = command(tasks, output, server=url, model_url=model.url, concurrency=1)
    collect = child(*argv)
    model.wait_for_calls(3)
    collect.interrupt()
    ended = collect.ended()
    assert (ended.code, ended.out) == (130, "")
    said = "gym-bridge: interrupted; what was done stays on disk, and the same command goes on from there"
    assert ended.err.strip() == said  # on a line of its own, below the terminal's ^C
    assert rollout_keys(output) == [(0, 0), (1, 0)]
    model.release()
    assert child(*argv).ended().code == 0
    assert rollout_keys(output) == [(task, 0) for task in range(6)]


def test_sigterm_keeps_what_was_collected_as_well(child, chat_model, tasks: Path, tmp_path: Path, rollout_keys):
    output, model, url = tmp_path / "rollouts.jsonl", chat_model(free_calls=2), child("serve", "arithmetic").address()
    collect = child(*command(tasks, output, server=url, model_url=model.url, concurrency=1))
    model.wait_for_calls(3)
    collect.process.terminate()
    assert collect.ended().code == 143
    assert rollout_keys(output) == [(0, 0), (1, 0)]


def test_a_server_that_was_never_there_is_exit_1(child, tasks: Path, tmp_path: Path):
    argv = command(tasks, tmp_path / "r.jsonl", server="http://127.0.0.1:9", model_url="http://127.0.0.1:9/v1", concurrency=6)
    ended = child(*argv, "--max-attempts", 1).ended()
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "6 requested = 0 completed + 0 truncated + 6 not attempted; run the same command to go on" in ended.err


def test_another_command_on_the_same_output_is_refused(gym_bridge, child, chat_model, tasks: Path, tmp_path: Path, rollout_keys):
    output, model = tmp_path / "rollouts.jsonl", chat_model()
    argv = command(tasks, output, server=child("serve", "arithmetic").address(), model_url=model.url, concurrency=4)
    assert gym_bridge(*argv).code == 0
    other = gym_bridge(*argv, "--temperature", 0.5)
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert f"{output} was begun by another command (temperature: None then, 0.5 now)" in other.err
    assert len(rollout_keys(output)) == 6
    assert gym_bridge(*argv, "--temperature", 0.5, "--overwrite").code == 0
    assert len(rollout_keys(output)) == 6


def test_another_server_at_the_same_address_is_refused(child, chat_model, tasks: Path, tmp_path: Path, rollout_keys):
    output, model, server = tmp_path / "rollouts.jsonl", chat_model(free_calls=2), child("serve", "arithmetic")
    url = server.address()
    argv = command(tasks, output, server=url, model_url=model.url, concurrency=1)
    collect = child(*argv)
    model.wait_for_calls(3)
    collect.interrupt()
    assert collect.ended().code == 130
    model.release()
    server.process.terminate()
    server.ended()
    other = child("serve", "calculator", "--port", url.rpartition(":")[2])
    assert other.address() == url
    ended = child(*argv).ended()
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{output} has rollouts of another server: what {url} says of itself" in ended.err
    other.process.terminate()
    other.ended()
    child("serve", "arithmetic", "--port", url.rpartition(":")[2]).address()
    assert child(*argv).ended().code == 0
    assert len(rollout_keys(output)) == 6


def test_a_command_that_stopped_before_its_first_rollout_binds_nobody(gym_bridge, chat_model, tasks: Path, tmp_path: Path):
    argv = command(tasks, tmp_path / "r.jsonl", server="arithmetc", model_url=chat_model().url, concurrency=4)
    assert "did you mean 'arithmetic'?" in gym_bridge(*argv).err
    argv[argv.index("arithmetc")] = "arithmetic"
    assert gym_bridge(*argv, "--num-repeats", 2).out.endswith("12 requested = 12 completed + 0 truncated; mean reward 1.0000\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path}: the file is empty; expected one JSON object a line"),
        (b"\n\n", "{path}: the file is empty; expected one JSON object a line"),
        (b'{"a": 1}\n\n{"a": \n', "{path}:3: no JSON: "),
        (b"[1]\n", "{path}:1: expected a JSON object, found list"),
        (b"\xff\xfe\n", "{path}:1: no JSON: "),
    ],
)
def test_a_bad_tasks_file_is_named_with_its_line_and_leaves_nothing(gym_bridge, tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content)
    argv = command(path, tmp_path / "out" / "r.jsonl", server="arithmetic", model_url="http://127.0.0.1:9/v1", concurrency=1)
    ended = gym_bridge(*argv)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("gym-bridge: " + message.format(path=path))
    assert not (tmp_path / "out").exists()


def test_a_tasks_file_that_is_missing_a_directory_or_unreadable_is_exit_2(gym_bridge, tmp_path: Path):
    def error(path: Path) -> str:
        argv = command(path, tmp_path / "r.jsonl", server="arithmetic", model_url="http://127.0.0.1:9/v1", concurrency=1)
        ended = gym_bridge(*argv)
        assert ended.code == 2
        return ended.err

    assert error(tmp_path / "no.jsonl") == f"gym-bridge: {tmp_path / 'no.jsonl'}: No such file or directory\n"
    assert error(tmp_path) == f"gym-bridge: {tmp_path}: Is a directory\n"
    closed = tmp_path / "closed.jsonl"
    closed.write_text("{}\n")
    closed.chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root reads files of mode 0; missing files and directories were checked")
    assert error(closed) == f"gym-bridge: {closed}: Permission denied\n"


def test_an_output_that_cannot_be_written_is_exit_2(gym_bridge, tasks: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    argv = command(tasks, tmp_path / "file" / "r.jsonl", server="arithmetic", model_url="http://127.0.0.1:9/v1", concurrency=1)
    ended = gym_bridge(*argv)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"cannot write {tmp_path / 'file' / 'r.jsonl'}: " in ended.err
