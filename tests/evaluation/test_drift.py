import pytest

from gym_bridge.evaluation.drift import Drift, drift_of


def test_tasks_count_alike_however_many_tokens_they_have():
    found = drift_of({0: [0.1, 0.3], 1: [0.4, 0.4, 0.4, 0.4], 2: []})
    assert found.kl is not None
    assert (found.kl.mean, found.kl.num_tasks) == (pytest.approx(0.3), 2)
    assert found.sentence().startswith("KL: 0.3000 (95 % ")
    assert found.sentence().endswith(" nats a token")


def test_what_was_not_measured_says_why():
    assert drift_of({0: []}).sentence() == "KL not measured: no token was sampled"
    assert Drift(unmeasured="they have other tokens").sentence() == "KL not measured: they have other tokens"
