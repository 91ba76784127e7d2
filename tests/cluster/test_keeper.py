"""Who keeps a process in a place: it ends with its lease, and a call that was cut off finds the same process again."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from gym_bridge.cluster import leases, ray_places
from gym_bridge.cluster.commands import Command, Place
from gym_bridge.cluster.leases import Leases
from gym_bridge.cluster.ray_places import SUPERSEDED, Keeper

KILLED, TERMINATED = 128 + signal.SIGKILL, 128 + signal.SIGTERM


class Here(Keeper):
    """One without Ray."""

    def place(self) -> Place:
        return Place(address="127.0.0.1", port=1)


@pytest.fixture
def keeper():
    kept = Here()
    yield kept
    kept.stop(0.0)


def python(code: str, directory: Path) -> Command:
    return Command(argv=[sys.executable, "-c", code], directory=directory, log=directory / "log")


def lines(directory: Path) -> list[str]:
    return (directory / "log").read_text().splitlines()


def test_a_process_whose_lease_is_not_renewed_ends(keeper: Keeper, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ray_places, "LEASE_S", 0.5)
    started = time.monotonic()
    assert keeper.run(python("import time; time.sleep(60)", tmp_path), 0) == KILLED
    assert time.monotonic() - started < 30
    assert keeper.run(python("print('again')", tmp_path), 1) == 0  # it is no stop for good
    assert lines(tmp_path) == ["again"]


def test_a_renewed_lease_keeps_it(keeper: Keeper, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ray_places, "LEASE_S", 1.5)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.1):
            keeper.renew()

    renewing = threading.Thread(target=renew)
    renewing.start()
    assert keeper.run(python("import time; time.sleep(4)", tmp_path), 0) == 0
    ended.set()
    renewing.join()


def test_who_waits_again_waits_for_the_same_process(keeper: Keeper, tmp_path: Path):
    command = python("import time; print('once', flush=True); time.sleep(2)", tmp_path)
    codes: list[int] = []
    waiting = [threading.Thread(target=lambda: codes.append(keeper.run(command, 0))) for _ in range(3)]
    for one in waiting:
        one.start()
    for one in waiting:
        one.join()
    assert (sorted(codes), lines(tmp_path)) == ([SUPERSEDED, SUPERSEDED, 0], ["once"])


def test_one_that_saves_after_sigterm_needs_no_lease(keeper: Keeper, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ray_places, "LEASE_S", 1.0)
    saves = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(4), exit(3)))\nprint('up', flush=True)\n"
    codes: list[int] = []
    waiting = threading.Thread(target=lambda: codes.append(keeper.run(python(saves + "time.sleep(60)", tmp_path), 0)))
    waiting.start()
    while not (tmp_path / "log").exists() or lines(tmp_path) != ["up"]:
        keeper.renew()
        time.sleep(0.05)
    keeper.stop(30.0)
    waiting.join()
    assert codes == [3]
    assert keeper.run(python("print('no more')", tmp_path), 1) == TERMINATED


def test_who_is_not_known_to_have_heard_of_us_is_waited_for(monkeypatch):
    monkeypatch.setattr(
        leases, "_renew", lambda keeper, lease: setattr(lease, "renewed", time.monotonic()) if keeper == "near" else None
    )
    monkeypatch.setattr(leases, "RENEWAL_S", 0.05)
    monkeypatch.setattr(leases, "LEASE_S", 2.0)
    monkeypatch.setattr(leases, "ENDING_S", 0.0)
    with Leases() as held:
        held.begin("near")
        held.begin("far")
        time.sleep(1.0)
        far, near = held.end("far"), held.end("near")
    assert 0.0 < far <= 1.0 < near <= 2.0
    assert held.end("far") == held.end("nobody") == 0.0
