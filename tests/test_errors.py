import pickle

import pytest

from gym_bridge.errors import ConfigError, DataError, GymBridgeError, PolicyError, ServerError, missing_extra, nearest

ERRORS = [
    ConfigError("unknown key 'x'"),
    DataError("no JSON", path="a.jsonl", line=3),
    DataError("empty", path="a.jsonl"),
    ServerError("refused", url="http://127.0.0.1:9", status=503, attempts=3),
    PolicyError("the loss is not finite"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_crosses_a_process_with_its_attributes(error: GymBridgeError):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, again.__dict__, again.exit_code) == (str(error), error.args, error.__dict__, error.exit_code)


def test_a_users_own_subclass_with_another_signature_crosses_a_process():
    again = pickle.loads(pickle.dumps(Quota("too many", left=7)))
    assert isinstance(again, Quota)
    assert (str(again), again.left) == ("http://x: too many", 7)


class Quota(ServerError):
    def __init__(self, message: str, *, left: int):
        self.left = left
        super().__init__(message, url="http://x")


def test_a_message_says_where():
    assert [str(one) for one in ERRORS[1:4]] == ["a.jsonl:3: no JSON", "a.jsonl: empty", "http://127.0.0.1:9: refused"]
    assert str(DataError("no JSON")) == "no JSON"


def test_the_users_mistakes_exit_with_2_and_other_faults_with_1():
    assert [one.exit_code for one in ERRORS] == [2, 2, 2, 1, 1]
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ServerError, RuntimeError)


def test_the_nearest_names_are_offered():
    assert nearest("polcy", ["policy", "data"]) == "; did you mean 'policy'?"
    assert nearest("tain", ["train", "main", "zebra"]) == "; did you mean 'train' or 'main'?"


def test_all_names_are_offered_when_none_is_near():
    assert nearest("xyz", ["policy", "data"]) == "; known: data, policy"
    assert nearest("xyz", []) == ""


def test_a_missing_extra_names_its_pip_line():
    assert str(missing_extra("training", "train")) == "training needs the 'train' extra: pip install 'gym-bridge[train]'"
