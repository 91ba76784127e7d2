from types import SimpleNamespace

from gym_bridge.trainers.fresh_weights import FreshWeights


def test_each_version_is_pushed_once_after_what_must_not_see_it_has_ended():
    told = []
    policy = SimpleNamespace(version=0, weights=lambda: [("w", policy.version)])
    fresh = FreshWeights(policy, SimpleNamespace(push=lambda weights, version: told.append((list(weights), version))))
    fresh.settle = lambda: told.append("settle")
    fresh.renew()
    fresh.renew()
    policy.version = 3
    fresh.renew()
    assert told == ["settle", ([("w", 0)], 0), "settle", ([("w", 3)], 3)]
    assert fresh.metrics()["push_s"] > 0
    assert fresh.metrics() == {"push_s": 0.0}
