import pytest

from gym_bridge.errors import PolicyError
from gym_bridge.policy.checkpoint import checkpoint_aside


def names(directory):
    return sorted(one.name for one in directory.iterdir())


def test_what_stands_there_is_replaced_as_a_whole(tmp_path):
    for content in ("old", "new"):
        with checkpoint_aside(tmp_path / "step") as aside:
            (aside / content).write_text(content)
    assert names(tmp_path) == ["step"]
    assert names(tmp_path / "step") == ["new"]


def test_what_stands_there_and_cannot_be_moved_is_left_whole(tiny_disk):
    (tiny_disk / "file").write_text("old")
    with pytest.raises(PolicyError, match=r"cannot save .*disk: Device or resource busy"), checkpoint_aside(tiny_disk) as aside:
        (aside / "file").write_text("new")
    assert (tiny_disk / "file").read_text() == "old"
    assert names(tiny_disk.parent) == ["disk"]


def test_what_a_kill_left_behind_does_not_get_in(tmp_path):
    for left in (".step.saving", ".step.removed"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "torn").write_text("")
    with checkpoint_aside(tmp_path / "step") as aside:
        (aside / "file").write_text("whole")
    assert names(tmp_path) == ["step"]
    assert names(tmp_path / "step") == ["file"]
