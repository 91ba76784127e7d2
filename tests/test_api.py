"""The verbs as functions, on a tiny real model and a real resource server in a thread: collect, transform, train, evaluate."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gym_bridge import ConfigError, ServerError, audit, collect, compare, evaluate, train, transform
from gym_bridge.io.jsonl import read_jsonl, write_jsonl
from gym_bridge.io.token_store import TokenStore
from gym_bridge.resource_servers.base import ResourceServer, Response, Task, Verdict
from gym_bridge.resource_servers.serving import serve
from gym_bridge.schemas.play_settings import CollectSettings, EvalSettings
from gym_bridge.schemas.settings import GRPOSettings, SFTSettings
from gym_bridge.schemas.transform_settings import TransformSettings

NUM_TASKS, NUM_REPEATS = 3, 4


class VowelServer(ResourceServer[Task, None]):
    """Rewards the share of vowels in the answer: something that even random weights get now and then."""

    Task = Task

    @classmethod
    def make_tasks(cls, knobs, *, num_tasks, seed, split):
        messages = [[{"role": "user", "content": f"Say {number}"}] for number in range(num_tasks)]
        return iter([{"responses_create_params": {"input": one}, "note": "kept"} for one in messages])

    async def seed(self, task: Task) -> None:
        return None

    async def verify(self, task: Task, response: Response, session: None) -> Verdict:
        text = response.final_text
        return Verdict(reward=sum(letter in "aeiou" for letter in text) / max(len(text), 1))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    addresses: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    def note(url: str) -> None:
        addresses.append(url)
        ready.set()

    task = loop.create_task(serve(VowelServer(), port=0, on_ready=note))

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    yield addresses[0]
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    write_jsonl(path, VowelServer.tasks(num_tasks=NUM_TASKS, seed=0, split="train"))
    return path


def collect_settings(tasks: Path, server: str, model: Path, **more) -> CollectSettings:
    values = {"input": tasks, "output": tasks.with_name("rollouts.jsonl"), "server": server, "model": str(model)}
    return CollectSettings(**{**values, "num_repeats": NUM_REPEATS, "max_output_tokens": 6, "compute_dtype": "float32", **more})


def grpo_settings(tasks: Path, server: str, model: Path, output: Path, *, max_steps: int) -> GRPOSettings:
    return GRPOSettings.model_validate(
        {
            "policy": {"model": str(model), "lr": 1e-3, "compute_dtype": "float32"},
            "data": {"train": tasks},
            "env": {"server": server},
            "sampler": {"max_tokens": 6},
            "algorithm": {"tasks_per_step": 2, "group_size": 4},
            "trainer": {"output": output, "max_steps": max_steps},
        }
    )


def rows(path: Path) -> list[dict]:
    return [row for _, row in read_jsonl(path)]


def test_collected_rollouts_keep_the_task_and_account_for_every_request(tasks: Path, server: str, tiny_llama: Path):
    result = collect(collect_settings(tasks, server, tiny_llama))
    finished = rows(result.output)
    assert result.ledger.requested == len(finished) == NUM_TASKS * NUM_REPEATS
    assert result.ledger.completed + result.ledger.truncated == result.ledger.requested
    assert {(row["_ng_task_index"], row["_ng_rollout_index"]) for row in finished} == {
        (task, repeat) for task in range(NUM_TASKS) for repeat in range(NUM_REPEATS)
    }
    assert {row["note"] for row in finished} == {"kept"}
    assert result.mean_reward == pytest.approx(sum(row["reward"] for row in finished) / len(finished))
    turn = TokenStore(tasks.with_name("rollouts.tokens")).read((0, 0, 0))[0]
    assert len(turn.completion_ids) == len(turn.logprobs) <= 6
    assert audit(result.output, model=str(tiny_llama)).num_problems == 0


def test_the_same_collection_again_plays_nothing_and_a_changed_one_is_refused(tasks: Path, server: str, tiny_llama: Path):
    result = collect(collect_settings(tasks, server, tiny_llama))
    before = result.output.read_bytes()
    assert collect(collect_settings(tasks, server, tiny_llama)) == result
    assert result.output.read_bytes() == before
    with pytest.raises(ConfigError, match=r"temperature: None then, 0\.5 now"):
        collect(collect_settings(tasks, server, tiny_llama, temperature=0.5))
    assert result.output.read_bytes() == before


def test_equal_seeds_sample_equal_answers_and_other_seeds_other_ones(tasks: Path, server: str, tiny_llama: Path):
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        output = tasks.with_name(f"{name}.jsonl")
        collect(collect_settings(tasks, server, tiny_llama, output=output, seed=seed))
        found = {(row["_ng_task_index"], row["_ng_rollout_index"]): row["response"]["output"] for row in rows(output)}
        texts.append(json.dumps([found[key] for key in sorted(found)]))
    assert texts[0] == texts[1] != texts[2]


def test_tasks_keep_their_own_temperature_and_limit_unless_the_command_sets_them(server: str, tiny_llama: Path, tmp_path: Path):
    path = tmp_path / "tasks.jsonl"
    params = {"input": "Say it", "temperature": 0.25, "max_output_tokens": 2}
    write_jsonl(path, [{"responses_create_params": params}])
    given = {"num_repeats": 1, "max_output_tokens": None}
    collect(collect_settings(path, server, tiny_llama, **given))
    collect(collect_settings(path, server, tiny_llama, **{**given, "output": tmp_path / "b.jsonl", "temperature": 0.5}))
    own, overlaid = (rows(tmp_path / name)[0] for name in ("rollouts.jsonl", "b.jsonl"))
    assert own["responses_create_params"] == params
    assert overlaid["responses_create_params"] == {**params, "temperature": 0.5}
    assert own["response"]["usage"]["output_tokens"] <= 2


def test_answers_that_a_limit_cut_off_make_no_dataset(tasks: Path, server: str, tiny_llama: Path):
    rollouts = collect(collect_settings(tasks, server, tiny_llama, max_output_tokens=1)).output
    with pytest.raises(ConfigError, match=r"of 12 rows, 1[012] truncated"):
        transform([rollouts], TransformSettings(to="sft", output=tasks.with_name("sft.jsonl"), min_reward="none"))


def test_rows_train_and_the_trained_policy_is_evaluated_on_the_same_tasks(tasks: Path, server: str, tiny_llama: Path):
    dataset = tasks.with_name("sft.jsonl")
    questions = [{"role": "user", "content": f"Say {number}"} for number in range(NUM_TASKS)]
    write_jsonl(dataset, [{"messages": [question, {"role": "assistant", "content": "aeiou"}]} for question in questions * 4])
    output = tasks.with_name("sft")
    settings = {"policy": {"model": str(tiny_llama), "lr": 1e-2, "compute_dtype": "float32"}, "data": {"train": dataset}}
    trained = train(SFTSettings.model_validate({**settings, "algorithm": {"epochs": 8}, "trainer": {"output": output}}))
    losses = [row["loss"] for row in rows(output / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert trained.checkpoint == output / "checkpoints" / f"step_{trained.steps:08d}"

    summaries = {}
    for name, model in (("before", tiny_llama), ("after", output)):
        played = {"input": tasks, "output": tasks.with_name(f"{name}.jsonl"), "server": server, "model": str(model)}
        summaries[name] = evaluate(EvalSettings.model_validate({**played, "max_output_tokens": 6, "num_repeats": 2}))
    paired = compare(tasks.with_name("before.jsonl"), tasks.with_name("after.jsonl"))
    assert (paired.before, paired.after) == (summaries["before"], summaries["after"])
    assert paired.difference.mean == pytest.approx(summaries["after"].reward.mean - summaries["before"].reward.mean)
    played_by = [
        {version for row in rows(tasks.with_name(f"{name}.jsonl")) for version in row["gym_bridge"]["policy_versions"]}
        for name in ("before", "after")
    ]
    assert played_by == [{0}, {trained.steps}]


def test_grpo_plays_trains_and_goes_on_from_its_checkpoint(tasks: Path, server: str, tiny_llama: Path, tmp_path: Path):
    output = tmp_path / "grpo"
    first = train(grpo_settings(tasks, server, tiny_llama, output, max_steps=2))
    played = rows(output / "rollouts.jsonl")
    assert first.steps == 2
    assert len(played) == 2 * 2 * 4
    assert {version for row in played for version in row["gym_bridge"]["policy_versions"]} == {0, 1}
    assert [row["gap"] for row in rows(output / "metrics.jsonl")] == pytest.approx([1.0, 1.0], abs=1e-4)

    second = train(grpo_settings(tasks, server, tiny_llama, output, max_steps=4))
    played = rows(output / "rollouts.jsonl")
    assert second.steps == 4
    assert [row["step"] for row in rows(output / "metrics.jsonl")] == [1, 2, 3, 4]
    keys = [(row["_ng_task_index"], row["_ng_rollout_index"]) for row in played]
    assert len(set(keys)) == len(keys) == 4 * 2 * 4
    assert second.checkpoint is not None
    assert [one.name for one in (output / "checkpoints").iterdir()] == [second.checkpoint.name]


def test_a_run_with_other_settings_does_not_go_on_where_the_first_stopped(
    tasks: Path, server: str, tiny_llama: Path, tmp_path: Path
):
    output = tmp_path / "grpo"
    settings = grpo_settings(tasks, server, tiny_llama, output, max_steps=1)
    train(settings)
    changed = settings.model_copy(update={"policy": settings.policy.model_copy(update={"lr": 2e-3})})
    with pytest.raises(ConfigError, match=r"policy\.lr: 0\.001 then, 0\.002 now"):
        train(changed)


def test_an_unknown_model_and_an_unknown_server_are_refused_with_the_nearest_name(tasks: Path, server: str, tiny_llama: Path):
    with pytest.raises(ConfigError, match="did you mean 'smollm2-135m'"):
        collect(collect_settings(tasks, server, Path("smollm2-135")))
    with pytest.raises(ConfigError, match="did you mean 'arithmetic'"):
        collect(collect_settings(tasks, "arithmetik", tiny_llama))


def test_the_tasks_are_no_file_of_the_log_that_is_written(tasks: Path, server: str, tiny_llama: Path):
    inputs = tasks.with_name("rollouts_materialized_inputs.jsonl")
    inputs.write_bytes(tasks.read_bytes())
    with pytest.raises(ConfigError, match="is a file of the log"):
        collect(collect_settings(inputs, server, tiny_llama, overwrite=True))
    assert inputs.read_bytes() == tasks.read_bytes()


def test_a_collection_without_any_reward_says_so_and_more_attempts_go_on(tasks: Path, server: str, tiny_llama: Path):
    hasty = {"num_repeats": 1, "rollout_timeout_s": 1e-4}
    with pytest.raises(
        ServerError, match=r"no rollout got a reward: 3 requested = .* 3 timeout_exceeded; the last one failed with: not finished"
    ):
        collect(collect_settings(tasks, server, tiny_llama, max_attempts=1, **hasty))
    with pytest.raises(ServerError, match="3 requested"):
        collect(collect_settings(tasks, server, tiny_llama, max_attempts=2, **hasty))
    attempts = [row["_ng_attempt_index"] for row in rows(tasks.with_name("rollouts_failures.jsonl"))]
    assert sorted(attempts) == [0, 0, 0, 1, 1, 1]
