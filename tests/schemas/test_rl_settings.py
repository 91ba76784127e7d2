"""The settings of reinforcement learning beside each other: defaults, presets, what has no effect."""

import pytest
from omegaconf import OmegaConf

from gym_bridge.config import load_config
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.rl_presets import PRESETS
from gym_bridge.schemas.rl_rules import OF_ALGORITHM, OF_SECTIONS
from gym_bridge.schemas.settings import GRPOAlgorithm, GRPOSettings

PLAYED = "data.train=tasks.jsonl env.server=arithmetic"
BY_AGENT = "data.train=tasks.jsonl env.agent_url=http://127.0.0.1:9001"
STORED = "data.rollouts=rollouts.jsonl"
VLLM = "sampler.kind=vllm sampler.url=http://127.0.0.1:8000"


def settings(overrides: str) -> GRPOSettings:
    return load_config(GRPOSettings, overrides=overrides.split())


def algorithm(overrides: str) -> GRPOAlgorithm:
    return settings(f"{PLAYED} {overrides}").algorithm


def test_training_takes_ten_steps_unless_told_whatever_else_is_told_of_the_loop():
    assert settings(PLAYED).trainer.max_steps == 10
    assert settings(f"{PLAYED} trainer.output=runs/mine").trainer.max_steps == 10
    assert settings(f"{PLAYED} trainer.max_steps=null").trainer.max_steps is None


IDLE = [
    # What is told, what it has no effect beside, and what gives it an effect.
    ("data.num_tasks=9", PLAYED, "with data.train: no task is made", "env.server=arithmetic"),
    ("data.num_tasks=9", STORED, "with data.rollouts: nothing is played", "env.server=arithmetic"),
    ("data.validation.held_out=h.jsonl", STORED, "with data.rollouts: nothing is played", PLAYED),
    ("data.curriculum={skip_passes: 3}", "data.groups=g.jsonl", "with data.groups: nothing is played", PLAYED),
    ("overlap.max_staleness=1", "data.replay=run", "with data.replay: nothing is played", PLAYED),
    ("sampler.kind=mine:Sampler", STORED, "with data.rollouts: nothing is played", PLAYED),
    ("data.validation_repeats=4", PLAYED, "without data.validation", f"{PLAYED} data.validation.a=h.jsonl"),
    ("env.agent=simple", PLAYED, "with env.server: no agent plays", BY_AGENT),
    ("env.policy_address=127.0.0.1:8765", PLAYED, "with env.server: no agent plays", BY_AGENT),
    ("sampler.max_batch=8", f"{PLAYED} {VLLM}", "on sampler.kind=vllm; it is for local", PLAYED),
    ("sampler.lockstep=true", f"{PLAYED} {VLLM}", "on sampler.kind=vllm; it is for local", PLAYED),
    ("sampler.sleep=true", PLAYED, "on sampler.kind=local; it is for vllm", f"{PLAYED} {VLLM}"),
    ("overlap.in_flight_updates=true", PLAYED, "without overlap.max_staleness", f"{PLAYED} overlap.max_staleness=1"),
]
OF_LOSSES = [
    ("dual_clip=3", "loss=cispo", "on algorithm.loss=cispo; it is for clipped", ""),
    ("ratio=sequence", "loss=reinforce", "on algorithm.loss=reinforce; it is for clipped", ""),
    ("clip_low=0.1", "loss=reinforce", "on algorithm.loss=reinforce; it is for clipped, cispo", "loss=cispo"),
    ("clip_high=0.3", "loss=reinforce", "on algorithm.loss=reinforce; it is for clipped, cispo", "loss=mine:loss"),
    ("fixed_length=9", "", "on algorithm.normalise_by=tokens; it is for fixed", "normalise_by=fixed"),
    ("correction=tis", "", "on algorithm.old_logprobs=sampler; it is for trainer", "old_logprobs=trainer"),
    ("kl=k2", "", "without algorithm.beta", "beta=0.1"),
    ("kl_in=reward", "beta=0", "without algorithm.beta", "beta=0.1"),
]
OF_ESTIMATORS = [
    ("baseline=leave_one_out", "estimator=gae", "on algorithm.estimator=gae; it is for group, components", "estimator=components"),
    ("scale=none", "estimator=teacher teacher=t", "on algorithm.estimator=teacher; it is for group, components", ""),
    ("credit=turn", "estimator=components", "on algorithm.estimator=components; it is for group", ""),
    ("component_weights.a=2", "", "on algorithm.estimator=group; it is for components", "estimator=components"),
    ("critic.lam=0.9", "", "on algorithm.estimator=group; it is for gae", "estimator=gae"),
    ("teacher_weight=2", "", "without algorithm.teacher", "teacher=t"),
    ("reward_scale.target=[-1,1]", "estimator=components", "on algorithm.estimator=components; it is for group, gae", ""),
    ("truncated_factor=0.5", "estimator=teacher teacher=t", "on algorithm.estimator=teacher; it is for group, gae", ""),
    ("overlong_penalty=2", "", "without algorithm.overlong_buffer", "overlong_buffer=8"),
    ("dynamic_sampling=true", "estimator=gae", "on algorithm.estimator=gae; it is for group, components", ""),
    ("dynamic_sampling=true", "teacher=t", "with algorithm.teacher: every group has a signal", ""),
    ("max_refills=3", "", "without algorithm.dynamic_sampling", "dynamic_sampling=true"),
]
IDLE += [
    (f"algorithm.{told}", of_algorithm(beside), why, of_algorithm(effect))
    for of_algorithm in [lambda given: " ".join([PLAYED, *(f"algorithm.{one}" for one in given.split())])]
    for told, beside, why, effect in OF_LOSSES + OF_ESTIMATORS
]


@pytest.mark.parametrize(("told", "beside", "why", "effect"), IDLE)
def test_a_setting_without_effect_is_refused_in_one_line_and_taken_where_it_has_one(told, beside, why, effect):
    name = told.partition("=")[0].replace("validation.held_out", "validation")
    section, key = name.split(".")[:2]
    with pytest.raises(ConfigError) as raised:
        load_config(GRPOSettings, overrides=[*beside.split(), told])
    assert str(raised.value) == f"{section}.{key} has no effect {why}"
    load_config(GRPOSettings, overrides=[*effect.split(), told])


def test_every_setting_that_a_rule_names_is_tried():
    tried = {".".join(told.partition("=")[0].split(".")[:2]) for told, *_ in IDLE}
    siblings = {
        "sampler.url",
        "sampler.transfer",
        "sampler.weights_directory",
        "algorithm.reward_shaping",
        "algorithm.overlong_buffer",
    }
    assert {name for rule in OF_ALGORITHM + OF_SECTIONS for name in rule.settings} - tried == siblings


def test_several_settings_without_effect_are_told_at_once():
    with pytest.raises(ConfigError) as raised:
        algorithm("algorithm.kl=k1 algorithm.teacher_weight=2")
    assert str(raised.value) == (
        "algorithm.kl has no effect without algorithm.beta; algorithm.teacher_weight has no effect without algorithm.teacher"
    )


def test_a_value_that_is_the_default_may_stand_anywhere():
    given = "data.num_tasks=512 overlap.in_flight_updates=false sampler.max_batch=64 sampler.transfer=auto algorithm.kl=k3"
    assert settings(f"{PLAYED} {given} algorithm.critic.lam=0.95").data.num_tasks == 512


def test_a_config_may_bring_an_environment_to_what_was_played():
    assert settings(f"{STORED} env.server=arithmetic").env is not None


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_preset_is_a_config_that_resolves_to_the_same(preset, tmp_path):
    resolved = settings(f"{PLAYED} algorithm={preset}")
    for name, value in PRESETS[preset].items():
        assert getattr(resolved.algorithm, name) == value
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved.model_dump(mode="json"))))  # as --dry-run prints it
    assert load_config(GRPOSettings, files=[path]) == resolved


@pytest.mark.parametrize(
    ("overrides", "taken_back"),
    [
        ("algorithm=rloo algorithm.normalise_by=tokens", {"fixed_length": None}),
        ("algorithm=reinforce_pp algorithm.beta=0", {"kl_in": "loss", "kl": "k3"}),
        ("algorithm=dapo algorithm.estimator=gae", {"dynamic_sampling": False}),
        ("algorithm=dapo algorithm.teacher=t", {"dynamic_sampling": False}),
        ("algorithm=gspo algorithm.loss=reinforce", {"ratio": "token", "clip_low": 0.2, "clip_high": 0.2}),
        ("algorithm=rloo algorithm.estimator=teacher algorithm.teacher=t", {"baseline": "mean", "scale": "std"}),
    ],
)
def test_a_preset_gives_way_where_its_values_would_do_nothing(overrides, taken_back, tmp_path):
    resolved = settings(f"{PLAYED} {overrides}")
    assert {name: getattr(resolved.algorithm, name) for name in taken_back} == taken_back
    preset = PRESETS[overrides.split()[0].partition("=")[2]]
    told = {one.partition("=")[0].removeprefix("algorithm.") for one in overrides.split()}
    for name in preset.keys() - taken_back.keys() - told:
        assert getattr(resolved.algorithm, name) == preset[name]
    assert GRPOSettings.model_validate(resolved.model_dump(mode="json")) == resolved


def test_what_the_user_sets_beside_a_preset_is_refused_where_it_does_nothing():
    with pytest.raises(ConfigError, match=r"algorithm\.kl_in has no effect without algorithm\.beta"):
        algorithm("algorithm=reinforce_pp algorithm.beta=0 algorithm.kl_in=reward")


def test_a_wrong_value_beside_a_preset_is_told_as_without_one():
    with pytest.raises(ConfigError, match=r"algorithm\.beta='much': Input should be a valid number"):
        algorithm("algorithm=reinforce_pp algorithm.beta=much")


def test_a_preset_gives_way_in_python_too():
    assert GRPOAlgorithm(preset="rloo", normalise_by="tokens").fixed_length is None


@pytest.mark.parametrize(
    ("overlap", "needed", "what"),
    [("", 64, "a whole batch"), ("overlap.max_staleness=2", 192, "the 3 batches of overlap.max_staleness=2")],
)
def test_in_lockstep_all_rollouts_in_flight_have_to_be_played_at_once(overlap, needed, what):
    given = f"{PLAYED} {overlap} sampler.lockstep=true"
    assert settings(f"{given} env.concurrency={needed}").sampler.lockstep
    with pytest.raises(ConfigError) as raised:
        settings(f"{given} env.concurrency={needed - 1}")
    assert str(raised.value) == f"sampler.lockstep needs env.concurrency >= {needed}, {what}, got {needed - 1}"


def test_two_places_to_play_say_how_to_leave_one_out():
    with pytest.raises(ConfigError, match=r"got env\.agent_url and env\.server; to leave one out .* such as env\.server=null$"):
        settings(f"{PLAYED} env.agent_url=http://127.0.0.1:9001")
    env = settings(f"{PLAYED} env.agent_url=http://127.0.0.1:9001 env.server=null").env
    assert env is not None
    assert env.played_by == "agent"
