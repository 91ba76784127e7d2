"""Whole trainings from files with a tiny model: what reaches the policy is what the files hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gym_bridge.api.training import train
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.settings import DPOSettings, RewardModelSettings, SFTSettings
from tests.tokens.test_rollout_samples import TURNS, inline

PAIRS = [{"prompt": f"{a}+2?", "chosen": str(a + 2), "rejected": f"It is {a}"} for a in range(6)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(kind: Any, model: Path, train: Any, run: Path, *, data: Any = None, **sections: Any) -> Any:
    values = {
        "data": {"train": train, **(data or {})},
        "policy": {"model": str(model), "compute_dtype": "float32", "lr": 1e-3},
        "algorithm": {"batch_size": 2},
        "trainer": {"output": run},
    }
    return kind.model_validate({key: {**values.get(key, {}), **sections.get(key, {})} for key in {*values, *sections}})


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_rollouts_and_chats_train_together_and_held_out_rows_are_scored(tiny_llama: Path, tmp_path: Path, own_cache: Path):
    chat = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
    files = [
        {"path": write(tmp_path / "rollouts.jsonl", inline(TURNS), inline(TURNS, reward=0.0)), "weight": 2},
        {"path": write(tmp_path / "more.jsonl", inline(TURNS))},
    ]
    held_out = write(tmp_path / "val.jsonl", inline(TURNS), inline(TURNS, reward=0.9))
    sft = settings(SFTSettings, tiny_llama, files, tmp_path / "run", data={"min_reward": 0.5, "validation": {"held_out": held_out}})
    result = train(sft)
    assert result.steps == 2  # twice the one good rollout, once the other: 3 rows
    assert [one["num_trained_tokens"] for one in metrics(tmp_path / "run") if "num_trained_tokens" in one] == [8, 4]
    assert result.metrics["validation/held_out/loss"] > 0
    assert len(list(own_cache.iterdir())) == 3
    mixed = write(tmp_path / "mixed.jsonl", chat, inline(TURNS))
    assert train(settings(SFTSettings, tiny_llama, mixed, tmp_path / "mixed")).steps == 1


@pytest.mark.parametrize("kind", [DPOSettings, RewardModelSettings])
def test_held_out_pairs_are_scored(tiny_llama: Path, tmp_path: Path, kind: Any):
    path, held_out = write(tmp_path / "pairs.jsonl", *PAIRS[:4]), write(tmp_path / "val.jsonl", *PAIRS[4:])
    result = train(settings(kind, tiny_llama, path, tmp_path / "run", data={"validation": {"held_out": held_out}}))
    assert {"validation/held_out/loss", "validation/held_out/accuracy"} <= result.metrics.keys()


def test_a_run_goes_on_with_the_same_files_and_tokenizer_only(tiny_llama: Path, tmp_path: Path):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    path, held_out = write(tmp_path / "pairs.jsonl", *PAIRS), write(tmp_path / "val.jsonl", *PAIRS)

    def go_on(steps: int) -> int:
        data, trainer = {"validation": {"held_out": held_out}}, {"output": tmp_path / "run", "max_steps": steps}
        return train(settings(DPOSettings, model, path, tmp_path / "run", data=data, trainer=trainer)).steps

    assert (go_on(1), go_on(2)) == (1, 2)
    write(held_out, *PAIRS[:1])
    with pytest.raises(ConfigError, match=r"holds another run \(digests\.validation\.held_out: "):
        go_on(3)
    write(held_out, *PAIRS)
    write(path, *PAIRS[:5])
    with pytest.raises(ConfigError, match=r"holds another run \(digests\.data: "):
        go_on(3)
    write(path, *PAIRS)
    template = model / "chat_template.jinja"
    before = template.read_text()
    template.write_text(before + "\n")
    with pytest.raises(ConfigError, match=r"holds another run \(digests\.tokenizer: "):
        go_on(3)
    template.write_text(before)
    (model / "renderer.json").write_text('{"renderer": "chatml"}')
    with pytest.raises(ConfigError, match=r"holds another run \(digests\.tokenizer: "):
        go_on(3)
    (model / "renderer.json").unlink()
    weights = load_file(model / "model.safetensors")
    save_file({name: 2 * one for name, one in weights.items()}, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"holds another run \(digests\.model: "):
        go_on(3)
