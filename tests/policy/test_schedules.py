import pytest
import torch
from transformers import get_scheduler

from gym_bridge.errors import ConfigError
from gym_bridge.policy.schedules import Schedule
from gym_bridge.schemas.settings import PolicySettings
from tests.policy.stage import mean_nll, open_policy, same, weights_of


def rates(count, *, total_steps=None, **settings):
    schedule = Schedule(PolicySettings(lr=1.0, **settings), total_steps=total_steps)
    return [schedule(version) for version in range(count)]


@pytest.mark.parametrize(
    ("settings", "total_steps", "expected"),
    [
        ({"warmup_steps": 3}, None, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"schedule": "constant"}, None, [1, 1]),
        ({"schedule": "linear"}, 4, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "warmup_steps": 1}, 5, [0.5, 1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "schedule_steps": 2}, 4, [1, 0.5, 0, 0]),
        ({"schedule": "cosine", "warmup_steps": 1}, 5, [0.5, 1, 0.8535533905932737, 0.5, 0.14644660940672627]),
        ({"schedule": "cosine", "schedule_steps": 2}, None, [1, 0.5, 0, 0, 0]),
        ({"schedule": "cosine_with_min_lr", "schedule_options": {"min_lr_rate": 0.5}}, 2, [1, 0.75, 0.5]),
        ({"schedule": "cosine_with_min_lr", "schedule_options": {"min_lr": 0.5}}, 2, [1, 0.75, 0.5]),
        ({"schedule": "cosine_warmup_with_min_lr", "warmup_steps": 2, "schedule_options": {"min_lr_rate": 0}}, 4, [0.5, 1, 0.5, 0]),
        ({"schedule": "polynomial", "schedule_options": {"power": 2, "lr_end": 0}}, 2, [1, 0.25, 0]),
        ({"schedule": "inverse_sqrt", "warmup_steps": 4}, None, [0.2, 0.4, 0.6, 0.8, 1, (4 / 5) ** 0.5, (4 / 6) ** 0.5]),
        (
            {
                "schedule": "warmup_stable_decay",
                "warmup_steps": 1,
                "schedule_options": {"num_decay_steps": 2, "decay_type": "linear"},
            },
            5,
            [0.5, 1, 1, 1, 0.5, 0],
        ),
        (
            {"schedule": "warmup_stable_decay", "schedule_options": {"num_decay_steps": 2, "num_stable_steps": 1}},
            None,
            [1, 1, 0.5, 0],
        ),
    ],
)
def test_rates_are_these(settings, total_steps, expected):
    assert rates(len(expected), total_steps=total_steps, **settings) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant"])
def test_without_a_rise_every_rate_is_that_of_transformers(name):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=7)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(7, total_steps=7, schedule=name) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, "policy.schedule=cosin: no schedule of this name; did you mean 'cosine'"),
        ({"schedule": "greedy"}, "policy.schedule=greedy: no schedule of this name"),
        ({"schedule": "linear"}, "which is not known; set trainer.max_steps or policy.schedule_steps"),
        ({"schedule": "constant", "warmup_steps": 2}, "policy.warmup_steps has no effect on policy.schedule=constant; use"),
        ({"schedule_steps": 9}, "policy.schedule_steps has no effect on policy.schedule=constant_with_warmup"),
        (
            {"schedule": "cosine_with_min_lr", "schedule_steps": 9, "schedule_options": {"min_lr_rat": 0.1}},
            "policy.schedule_options.min_lr_rat: no option of policy.schedule=cosine_with_min_lr; did you mean 'min_lr_rate'",
        ),
        ({"schedule_options": {"power": 2}}, "no option of policy.schedule=constant_with_warmup; it takes none"),
        ({"schedule": "cosine_with_min_lr", "schedule_steps": 9}, "One of min_lr or min_lr_rate should be set"),
        ({"schedule": "warmup_stable_decay", "schedule_steps": 9}, "needs policy.schedule_options.num_decay_steps"),
        (
            {"schedule": "polynomial", "schedule_steps": 9, "schedule_options": {"power": "two"}},
            "schedule_options={'power': 'two'}",
        ),
    ],
)
def test_what_cannot_be_scheduled_is_refused_before_the_model_is_read(tmp_path, settings, message):
    with pytest.raises(ConfigError) as told:
        open_policy(tmp_path / "no model", **settings)
    assert message in str(told.value)


def test_a_resumed_run_falls_as_one_that_never_stopped(tiny_llama, group, tmp_path):
    falling = {"schedule": "cosine", "warmup_steps": 1, "total_steps": 4}
    whole = open_policy(tiny_llama, **falling)
    expected = [whole.step([group], mean_nll).metrics["lr"] for _ in range(4)]
    first, second = open_policy(tiny_llama, **falling), open_policy(tiny_llama, **falling)
    found = [first.step([group], mean_nll).metrics["lr"] for _ in range(2)]
    first.save(tmp_path / "step", source_state={})
    second.load(tmp_path / "step")
    found += [second.step([group], mean_nll).metrics["lr"] for _ in range(2)]
    assert found == expected == pytest.approx([5e-4, 1e-3, 7.5e-4, 2.5e-4])
    assert same(weights_of(second), weights_of(whole))
