"""Over which network interface the processes of a training talk; between machines: tests/cluster/test_ray_machines.py."""

import os
import sys

import pytest

from gym_bridge.policy.interfaces import CHOSEN, interface_towards, use_interface_towards

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="interfaces are looked up on Linux")


def test_processes_of_one_machine_talk_over_its_loopback(monkeypatch):
    monkeypatch.delenv(CHOSEN, raising=False)
    use_interface_towards("localhost")
    assert os.environ.pop(CHOSEN) == "lo"


def test_who_has_chosen_an_interface_keeps_it(monkeypatch):
    monkeypatch.setenv(CHOSEN, "ib0")
    use_interface_towards("127.0.0.1")
    assert os.environ[CHOSEN] == "ib0"


def test_a_host_that_nobody_knows_decides_nothing(monkeypatch):
    monkeypatch.delenv(CHOSEN, raising=False)
    assert interface_towards("nowhere.invalid") is None
    use_interface_towards("nowhere.invalid")
    assert CHOSEN not in os.environ
