import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gym_bridge.config import Registry, StrictModel, load_config, load_object, validate
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.play_settings import CollectSettings
from gym_bridge.schemas.settings import SFTSettings

NEEDED = ["data.train=rows.jsonl"]


def load(*overrides: str, files: list[Path] | None = None) -> SFTSettings:
    return load_config(SFTSettings, files=files or [], overrides=[*NEEDED, *overrides])


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str | bytes, name: str = "a.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_overrides_win_over_files_and_later_files_over_earlier(written):
    first = written("policy: {lr: 0.1, warmup_steps: 3}\ntrainer: {seed: 1}", "first.yaml")
    second = written("policy: {lr: 0.2, weight_decay: 0.5}\ntrainer: {seed: 2}", "second.yaml")
    settings = load("trainer.seed=3", files=[first, second])
    policy = settings.policy
    assert (policy.lr, policy.warmup_steps, policy.weight_decay, settings.trainer.seed) == (0.2, 3, 0.5, 3)
    assert settings.trainer.keep_last == 1  # untouched by all


def test_a_file_is_laid_over_its_defaults_and_theirs(written):
    written("policy: {lr: 0.1, warmup_steps: 3}\ntrainer: {seed: 1, keep_last: 4}", "root.yaml")
    written("defaults: root.yaml\npolicy: {lr: 0.2}\ntrainer: {seed: 2}", "middle.yaml")
    written("algorithm: {batch_size: 5}\ntrainer: {seed: 9}", "side.yaml")
    settings = load(files=[written("defaults: [side.yaml, middle.yaml]\npolicy: {weight_decay: 0.5}", "top.yaml")])
    policy = settings.policy
    assert (policy.lr, policy.warmup_steps, policy.weight_decay) == (0.2, 3, 0.5)
    assert (settings.trainer.seed, settings.trainer.keep_last, settings.algorithm.batch_size) == (2, 4, 5)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.yaml": "defaults: a.yaml"}, "a.yaml: its defaults, .*a.yaml, lead back to it"),
        ({"a.yaml": "defaults: b.yaml", "b.yaml": "defaults: ./a.yaml"}, "b.yaml: its defaults, .*a.yaml, lead back to it"),
        ({"a.yaml": "defaults: b.yaml"}, r"b.yaml: No such file or directory \(the defaults of .*a.yaml\)"),
        ({"a.yaml": "defaults: {b: c}"}, "a.yaml: defaults names files beside this one"),
        ({"a.yaml": "defaults: 3"}, "a.yaml: defaults names files beside this one"),
        ({"a.yaml": "defaults: [3]"}, "a.yaml: defaults names files beside this one"),
    ],
)
def test_defaults_that_cannot_be_read_are_one_line(written, files: dict[str, str], told: str):
    for name, text in files.items():
        written(text, name)
    with pytest.raises(ConfigError, match=told):
        load(files=[written(files["a.yaml"])])


@pytest.mark.parametrize(
    ("override", "value"),
    [("1e-5", 1e-5), ("3", 3.0), ("2.5E-4", 2.5e-4), ("'1e-3'", 1e-3)],
)
def test_numbers_are_read_as_people_write_them(override: str, value: float):
    assert load(f"policy.lr={override}").policy.lr == value


def test_lists_null_paths_and_addresses_are_overrides():
    settings = load("policy.betas=[0.8,0.99]", "trainer.max_steps=null", "trainer.output=/tmp/a=b", "policy.model=http://h:1/x")
    assert settings.policy.betas == (0.8, 0.99)
    assert settings.trainer.max_steps is None
    assert settings.trainer.output == Path("/tmp/a=b")
    assert settings.policy.model == "http://h:1/x"


def test_an_interpolation_takes_another_settings_value():
    assert load("trainer.seed=7", "algorithm.batch_size=${trainer.seed}").algorithm.batch_size == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.lrr=1", "unknown key 'policy.lrr'; did you mean 'lr' or 'lora'?"),
        ("polcy.lr=1", "unknown key 'polcy'; did you mean 'policy'?"),
        ("zzz=1", "unknown key 'zzz'; known: algorithm, cluster, data, logger, policy, trainer"),
        (".policy=1", "unknown key ''; known: algorithm, cluster, data, logger, policy, trainer"),
        ("policy.lr=abc", "policy.lr='abc': Input should be a valid number, unable to parse string as a number"),
        ("policy.lr=-1", "policy.lr=-1: Input should be greater than 0"),
        ("policy.lr=inf", "policy.lr='inf': Input should be a finite number"),
        ("policy.lr.deep=1", "policy.lr={'deep': 1}: Input should be a valid number"),
        ("policy=3", "policy=3: Input should be a valid dictionary or instance of PolicySettings"),
        ("policy.compute_dtype=fp8", "policy.compute_dtype='fp8': Input should be 'auto', 'float32' or 'bfloat16'"),
        ("policy.lr", "override 'policy.lr' has no '='; write key.subkey=value"),
        ("=1", "override '=1' has no '='; write key.subkey=value"),
    ],
)
def test_a_wrong_override_is_refused_and_says_what_is_right(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert str(caught.value) == message


@pytest.mark.parametrize("override", ["policy.lr=[", "policy.lr=${nope}", "policy.lr=${oc.env:NO_SUCH_VARIABLE_HERE}", "trainer={"])
def test_an_override_outside_the_grammar_is_one_line(override: str):
    with pytest.raises(ConfigError, match="cannot read the settings") as caught:
        load(override)
    assert "\n" not in str(caught.value)


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        load("policy.lr=x", "trainer.sed=1")
    assert str(caught.value).startswith("policy.lr='x': ")
    assert str(caught.value).endswith("; unknown key 'trainer.sed'; did you mean 'seed'?")


def test_a_required_value_is_asked_for_by_its_override(written):
    message = "'data.train' is required; set data.train=..."
    with pytest.raises(ConfigError) as caught:
        load_config(SFTSettings, overrides=["data.max_length=5"])
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        load_config(SFTSettings, files=[written("data:\n  train: ???\n")])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "{path}: expected settings as key: value, found a list"),
        (b"\xff\xfe\x00", "{path}: no UTF-8 text: invalid start byte at byte 0"),
    ],
)
def test_a_file_of_something_else_is_refused(written, content: str | bytes, message: str):
    path = written(content)
    with pytest.raises(ConfigError) as caught:
        load(files=[path])
    assert str(caught.value) == message.format(path=path)


@pytest.mark.parametrize("content", ["policy: [1", "policy:\n  lr: 1\n  lr: 2\n", "a: &x [*x]"])
def test_broken_yaml_names_file_and_line_in_one_line(written, content: str):
    path = written(content)
    with pytest.raises(ConfigError, match=f'{path}", line') as caught:
        load(files=[path])
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no\.yaml: No such file or directory"):
        load(files=[tmp_path / "no.yaml"])
    with pytest.raises(ConfigError, match=f"{tmp_path}: Is a directory"):
        load(files=[tmp_path])


def test_an_empty_file_sets_nothing(written):
    assert load(files=[written("")]) == load()


@given(st.text(max_size=30))
def test_no_override_breaks_out_as_another_error(text: str):
    with suppress(ConfigError):
        assert isinstance(load_config(SFTSettings, overrides=[*NEEDED, text]), SFTSettings)


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_a_float_written_as_an_override_comes_back_the_same(value: float):
    assert load(f"policy.lr={value!r}").policy.lr == value


def test_settings_are_frozen():
    settings = load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.policy.lr = 3.0  # pyright: ignore[reportAttributeAccessIssue]


def test_plain_values_are_validated_with_the_same_words():
    with pytest.raises(ConfigError) as caught:
        validate(CollectSettings, {"server": "arithmetic", "input": "a", "output": "b", "num_repeats": 0, "limt": 3})
    assert str(caught.value) == "num_repeats=0: a task is repeated once at least; unknown key 'limt'; did you mean 'limit'?"


def test_a_dotted_path_finds_an_object():
    assert load_object("gym_bridge.errors:ConfigError") is ConfigError


@pytest.mark.parametrize("path", ["no_such_package:x", "gym_bridge.errors:NoSuch", "gym_bridge.errors", ":x", "", "a..b:c"])
def test_a_path_to_nothing_is_refused_with_the_grammar(path: str):
    with pytest.raises(ConfigError, match=r"a dotted path looks like my_package\.module:name"):
        load_object(path)


def test_a_registry_loads_by_name_and_by_path_and_offers_the_nearest():
    registry: Registry[type] = Registry("error", {"config": "gym_bridge.errors:ConfigError"})
    assert registry.load("config") is ConfigError
    assert registry.load("gym_bridge.config:StrictModel") is StrictModel
    with pytest.raises(ConfigError) as caught:
        registry.load("confg")
    assert str(caught.value) == "unknown error 'confg'; did you mean 'config'?"


def test_a_module_of_the_current_directory_is_found_by_its_dotted_path_after_all_others(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text("HERE = 7")
    (tmp_path / "json.py").write_text("HERE = 8")
    program = """
import sys
from gym_bridge.config import load_object
from gym_bridge.errors import ConfigError
assert load_object("own_parts:HERE") == 7
import json
assert not hasattr(json, "HERE")
try:
    load_object("own_partz:HERE")
except ConfigError as error:
    assert "No module named" in str(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", [["a.jsonl", "b.jsonl"], 3])
def test_several_files_where_one_is_wanted_are_a_users_mistake(name):
    with pytest.raises(ConfigError, match=r"^input=.*expected the name of one file$"):
        validate(CollectSettings, {"input": name, "output": "out.jsonl", "model": "m"})
