"""A model trains as the renderer writes that the settings name, and its checkpoints remember it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.api.models import model_directory
from gym_bridge.api.training import train
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.settings import SFTSettings
from gym_bridge.tokens.renderers import load_renderer
from tests.tokens.vocabularies import write_qwen3

ROW = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
THOUGHTLESS = {"enable_thinking": False}
ANSWER, NO_THOUGHT = 2, 6
"""Tokens of `4<|im_end|>` and of the empty thought before it: two tags, two times two line ends."""


@pytest.fixture
def model(tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "cache"))
    return write_qwen3(shutil.copytree(tiny_qwen3, tmp_path / "model"))


def trained_tokens(model: Any, run: Path, **policy: Any) -> int:
    (run.parent / "sft.jsonl").write_text(json.dumps(ROW) + "\n")
    given = {"model": str(model), "compute_dtype": "float32", **policy}
    train(SFTSettings.model_validate({"data": {"train": run.parent / "sft.jsonl"}, "policy": given, "trainer": {"output": run}}))
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["num_trained_tokens"]


def test_what_the_prompt_brings_does_not_train_and_what_the_model_writes_does(model: Path, tmp_path: Path):
    assert trained_tokens(model, tmp_path / "thinking", renderer="qwen3") == NO_THOUGHT + ANSWER
    assert trained_tokens(model, tmp_path / "not", renderer="qwen3", chat_template_kwargs=THOUGHTLESS) == ANSWER


def test_a_checkpoint_renders_as_it_was_trained(model: Path, tmp_path: Path):
    trained_tokens(model, tmp_path / "run", renderer="qwen3", chat_template_kwargs=THOUGHTLESS)
    checkpoint = model_directory(str(tmp_path / "run"))
    assert json.loads((checkpoint / "renderer.json").read_text()) == {"renderer": "qwen3", "chat_template_kwargs": THOUGHTLESS}
    renderer = load_renderer(checkpoint)
    prompt = renderer.render_ids([ROW["messages"][0]], add_generation_prompt=True)
    assert renderer.tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")
    assert trained_tokens(checkpoint, tmp_path / "next") == ANSWER
    assert trained_tokens(checkpoint, tmp_path / "thinking", chat_template_kwargs={"enable_thinking": True}) == NO_THOUGHT + ANSWER


def test_the_hub_name_of_the_first_model_stays_known(tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "cache"))
    model = write_qwen3(shutil.copytree(tiny_qwen3, tmp_path / "Qwen" / "Qwen3-8B"))
    trained_tokens(model, tmp_path / "run")
    assert getattr(load_renderer(model_directory(str(tmp_path / "run"))), "name", None) == "qwen3"


def test_a_renderer_of_another_name_takes_no_options_of_the_file(model: Path):
    (model / "renderer.json").write_text(json.dumps({"renderer": "qwen3", "chat_template_kwargs": THOUGHTLESS}))
    assert getattr(load_renderer(model, name="default"), "name", None) == "default"


def test_code_that_a_model_names_by_itself_is_not_run(model: Path):
    own = f"{__name__}:NeverMade"
    (model / "renderer.json").write_text(json.dumps({"renderer": own}))
    with pytest.raises(ConfigError, match=f"renderer.json names code, {own}, that would run here; if you trust it"):
        load_renderer(model)


def test_a_broken_file_is_named(model: Path):
    (model / "renderer.json").write_text('{"rendrer": "qwen3"}')
    with pytest.raises(ConfigError, match=r"renderer\.json: Extra inputs.*; expected a renderer's name"):
        load_renderer(model)
