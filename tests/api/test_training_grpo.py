"""Reinforcement learning from end to end: a real tiny model, real servers in processes of their own, real HTTP."""

import pytest

from gym_bridge.errors import ConfigError, DataError, PolicyError
from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.schemas.rl_presets import PRESETS
from tests.api.grpo_stage import LETTERS, rows, run, serving_letters, steps, weights


@pytest.fixture(scope="module")
def letters():
    with serving_letters() as url:
        yield url


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    write_jsonl(path, [{"responses_create_params": {"input": [{"role": "user", "content": f"Say {n}"}]}} for n in range(8)])
    return path


@pytest.fixture
def start(tiny_llama, tmp_path, letters, tasks):
    """Runs in tmp_path by name, against the server of vowels."""

    def begin(name, *overrides):
        given = [f"env.server={letters}", f"data.train={tasks}", *overrides]
        return run(tiny_llama, tmp_path / name, *[one for one in given if one.partition("=")[2] != "-"])

    return begin


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(start, tmp_path, preset):
    result = start("run", f"algorithm={preset}", "algorithm.overlong_filter=false")  # random weights seldom end a reply
    assert result.steps == 2
    assert abs(steps(tmp_path / "run")[0]["gap"] - 1) < 1e-4


def test_a_server_of_ours_makes_the_tasks_where_none_are_given(tiny_llama, tmp_path):
    assert run(tiny_llama, tmp_path / "run", "data.num_tasks=3").steps == 2
    assert {row["_ng_task_index"] for row in rows(tmp_path / "run" / "rollouts.jsonl")} <= {0, 1, 2}


def test_in_lockstep_a_run_is_a_function_of_its_settings_whatever_the_timing(tiny_llama, tmp_path, tasks):
    for name in ("once", "again"):
        with serving_letters("jitter_s=0.05") as url:
            run(
                tiny_llama,
                tmp_path / name,
                f"env.server={url}",
                f"data.train={tasks}",
                "sampler.lockstep=true",
                "trainer.max_steps=3",
            )
    assert weights(tmp_path / "once") == weights(tmp_path / "again")
    assert steps(tmp_path / "once") == steps(tmp_path / "again")


@pytest.mark.parametrize("in_flight", ["false", "true"])
def test_overlapped_groups_are_never_older_than_the_bound(start, tmp_path, in_flight):
    start("run", "overlap.max_staleness=2", f"overlap.in_flight_updates={in_flight}", "trainer.max_steps=8")
    found = steps(tmp_path / "run")
    assert max(one["staleness_max"] for one in found) <= 2
    assert any(one["staleness"] > 0 for one in found)
    assert all(abs(one["gap"] - 1) < 1e-4 for one in found if one["staleness_max"] == 0)


def test_environments_are_mixed_by_weight_and_told_apart(start, tmp_path, tasks):
    with serving_letters("letters=0123456789") as digits:
        files = f"[{{path: {tasks}, name: vowels, weight: 3}}, {{path: {tasks}, name: digits, server: '{digits}'}}]"
        start("run", f"data.train={files}", "algorithm.tasks_per_step=4", "algorithm.baseline=none", "algorithm.scale=none")
    for one in steps(tmp_path / "run"):
        assert (one["num_rollouts/vowels"], one["num_rollouts/digits"]) == (12, 4)
        shares = 0.75 * one["reward/vowels"] + 0.25 * one["reward/digits"]
        assert one["reward"] == pytest.approx(shares)
    assert len({row["_ng_task_index"] for row in rows(tmp_path / "run" / "rollouts.jsonl")}) == 8


def test_held_out_tasks_are_played_greedily_and_sampled(start, tmp_path, tasks):
    result = start("run", f"data.validation.held_out={tasks}", "trainer.validate_every=1")
    lines = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if "validation/held_out/reward" in row]
    assert [row["step"] for row in lines] == [0, 1, 2]
    assert 0 <= result.metrics["validation/held_out/reward_greedy"] <= 1
    played = rows(tmp_path / "run" / "validation" / "held_out_step_00000002.jsonl")
    assert {row["responses_create_params"]["temperature"] for row in played} == {1.0}
    assert len(played) == 8
    log = rows(tmp_path / "run" / "rollouts.jsonl")
    assert len(log) == 2 * 2 * 4  # of training alone


def test_held_out_tasks_of_several_environments_are_played_each_at_its_own(start, tmp_path, tasks):
    with serving_letters("letters=0123456789") as digits:
        files = f"[{{path: {tasks}, name: vowels}}, {{path: {tasks}, name: digits, server: '{digits}'}}]"
        held_out = f"data.validation={{digits: {tasks}, vowels: {tasks}}}"
        start("run", f"data.train={files}", held_out, "trainer.validate_every=1", "algorithm.tasks_per_step=2")
        with pytest.raises(ConfigError, match=r"data.validation.odd: .* call it as the one .*: vowels, digits"):
            start("other", f"data.train={files}", f"data.validation.odd={tasks}", "trainer.validate_every=1")
    for name, letters in (("vowels", "aeiou"), ("digits", "0123456789")):
        played = rows(tmp_path / "run" / "validation" / f"{name}_step_00000002.jsonl")
        assert len(played) == 8
        for row in played:
            text = row["response"]["output"][-1]["content"][0]["text"]
            assert row["reward"] == pytest.approx(sum(one in letters for one in text) / max(1, len(text)))


def test_tasks_that_teach_nothing_rest(start, tmp_path):
    start("run", "data.curriculum={solved_reward: 0.0}", "algorithm.group_size=2", "trainer.max_steps=6")  # all count as solved
    found = steps(tmp_path / "run")
    assert found[0]["num_tasks_unseen"] == 8
    assert found[-1]["num_tasks_solved"] == 8
    assert found[-1]["num_tasks_woken"] > 0


def test_components_and_turns_have_their_own_credit(start, tiny_llama, tmp_path):
    start("components", "algorithm.estimator=components", "algorithm.component_weights={short: 0.5}")
    found = steps(tmp_path / "components")[0]
    assert {"reward_component/letters", "reward_component/short"} <= set(found)
    overrides = ["algorithm.credit=turn", "algorithm.baseline=leave_one_out", "algorithm.scale=none"]
    assert run(tiny_llama, tmp_path / "turns", f"env.server={LETTERS}:Turns", *overrides).steps == 2
    for one in rows(tmp_path / "turns" / "rollouts.jsonl"):
        assert sum(one["gym_bridge"]["turn_rewards"]) == pytest.approx(one["reward"])


@pytest.mark.parametrize(
    "way",
    [
        ["policy.lora.rank=4", "algorithm.beta=0.1", "algorithm.entropy_bonus=0.01"],
        ["policy.lora.rank=4", "overlap.max_staleness=1"],
        ["algorithm.estimator=teacher"],
        ["algorithm.old_logprobs=trainer", "algorithm.correction=icepop", "algorithm.beta=0.1", "algorithm.kl_in=reward"],
    ],
    ids=["adapters", "adapters, overlapped", "teacher", "corrected"],
)
def test_what_stands_beside_the_policy_trains_with_it(start, tiny_llama, tmp_path, way):
    teacher = [f"algorithm.teacher={tiny_llama}"] if "algorithm.estimator=teacher" in way else []
    assert start("run", *way, *teacher, "trainer.max_steps=3").steps == 3
    found = steps(tmp_path / "run")
    assert abs(found[0]["gap"] - 1) < 1e-4
    assert ("kl" in found[0]) == ("algorithm.beta=0.1" in way)
    if teacher:
        assert found[0]["loss"] == pytest.approx(0, abs=1e-4)  # the teacher is the policy itself


def test_recorded_steps_are_taken_again_bit_for_bit_without_a_server(start, tiny_llama, tmp_path):
    start("recorded", "trainer.record=true", "trainer.max_steps=3", "algorithm.minibatches=2", "algorithm.beta=0.1")
    overrides = [f"data.replay={tmp_path / 'recorded'}"]
    algorithm = {"tasks_per_step": 2, "group_size": 4, "minibatches": 2, "beta": 0.1}
    run(
        tiny_llama, tmp_path / "replayed", *overrides, algorithm=algorithm, env=None, trainer={"output": str(tmp_path / "replayed")}
    )
    assert weights(tmp_path / "recorded") == weights(tmp_path / "replayed")


def test_the_rollouts_of_a_run_train_another_one(start, tiny_llama, tmp_path):
    start("played")
    stored = tmp_path / "played" / "rollouts.jsonl"
    result = run(tiny_llama, tmp_path / "stored", f"data.rollouts={stored}", "trainer.max_steps=null", env=None)
    assert result.steps == 2
    assert steps(tmp_path / "stored")[0]["loss"] == pytest.approx(steps(tmp_path / "played")[0]["loss"], abs=1e-6)


def test_a_reward_that_is_always_the_same_says_what_to_try(tiny_llama, tmp_path):
    with (
        serving_letters("level=true") as url,
        pytest.raises(PolicyError, match=r"no spread in their rewards: all between 0\.25"),
    ):
        run(tiny_llama, tmp_path / "run", f"env.server={url}", f"data.train={made(tmp_path)}")


def made(directory):
    path = directory / "level.jsonl"
    write_jsonl(path, [{"responses_create_params": {"input": "Say it"}}])
    return path


def test_rollouts_that_are_all_filtered_out_say_so(start):
    with pytest.raises(PolicyError, match="all rollouts of 40 groups in a row were truncated, and with algorithm"):
        start("run", "algorithm.overlong_filter=true", "sampler.max_tokens=1")


def test_a_task_that_is_sampled_from_another_distribution_is_refused_before_anything_is_played(start, tasks):
    odd = {"responses_create_params": {"input": "Say it", "temperature": 0.6}}
    write_jsonl(tasks, [*rows(tasks), odd])
    with pytest.raises(DataError, match=r"tasks\.jsonl:9: temperature=0\.6 draws from another distribution than the policy"):
        start("run")


def test_a_run_goes_on_with_what_it_was_begun_with(start, tasks):
    start("run", "trainer.max_steps=1")
    write_jsonl(tasks, rows(tasks)[:4])
    with pytest.raises(ConfigError, match=r"digests\.tasks"):
        start("run", "trainer.max_steps=2")
