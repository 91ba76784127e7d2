"""Training files and validation sets, from their rows and from the cache."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.token_store import TokenStore
from gym_bridge.schemas.settings import RewardModelData, SFTData
from gym_bridge.tokens import sample_files
from gym_bridge.tokens.renderers import Renderer, load_renderer
from gym_bridge.trainers.offline_data import TrainData, load_data
from gym_bridge.trainers.reward_model import scored_pair_reader
from gym_bridge.trainers.sft import sft_reader
from tests.tokens.test_rollout_samples import TURNS, rollout
from tests.tokens.test_sample_cache import assert_equal
from tests.tokens.vocabularies import write_qwen3


def chat(answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer}], **more}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class CountingRenderer:
    """A renderer that counts how often it is asked."""

    def __init__(self, renderer: Renderer):
        self._renderer, self.asked = renderer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    def render(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return self._renderer.render(*args, **options)


@pytest.fixture
def counting(renderer: Renderer) -> Any:
    return CountingRenderer(renderer)


@pytest.fixture
def load(counting: Any, tokenizer_directory: Path, tmp_path: Path):
    def load_sft(*, model: Path = tokenizer_directory, **data: Any) -> TrainData:
        settings = SFTData.model_validate(data)
        return load_data(settings, sft_reader(settings, counting), model=model, cache=tmp_path / "cache")

    return load_sft


def origins(units: Any) -> list[str]:
    return [one.origin for unit in units for one in unit]


def test_weighted_files_and_named_sets_are_read(tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture):
    first, second = write(tmp_path / "a.jsonl", chat("4"), chat("4" * 99)), write(tmp_path / "b.jsonl", chat("5"), chat("6"))
    held_out = write(tmp_path / "val.jsonl", chat("7" * 99), chat("7"))
    files = [{"path": first, "weight": 2}, {"path": second, "weight": 0.5}]
    data = load(train=files, validation={"held_out": held_out}, max_length=60)
    assert origins(data.train.units) == [f"{first}:1", f"{second}:1", f"{second}:2"]
    assert [(part.first, part.count, part.weight) for part in data.train.parts] == [(0, 1, 2.0), (1, 2, 0.5)]
    assert origins(data.validation["held_out"]) == [f"{held_out}:2"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{first}: dropped 1 rows: too_long",
        f"{held_out}: dropped 1 rows: too_long",
    ]
    assert set(data.digests) == {"tokenizer", "data.0", "data.1", "validation.held_out"}
    assert set(load(train=first).digests) == {"tokenizer", "data"}


def test_a_cut_is_told(tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "a.jsonl", chat("4" * 99))
    (unit,) = load(train=path, max_length=60, over_length="cut").train.units
    assert len(unit[0].token_ids) == 60
    assert f"{path}: cut 1 rows to data.max_length=60 tokens" in caplog.text


def test_what_the_cache_holds_is_not_rendered_again(tmp_path: Path, load: Any, counting: Any, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "a.jsonl", chat("4", w=0.5), chat("5" * 99, w=1), chat("6", w=2))
    settings = {"train": path, "weight": "w", "max_length": 60}
    fresh = load(**settings)
    assert counting.asked == 3
    caplog.clear()
    kept = load(**settings)
    assert counting.asked == 3
    assert "dropped 1 rows: too_long" in caplog.text  # told each time
    both = [sample_files.Samples(units=list(one.train.units), lines=[1, 3]) for one in (kept, fresh)]
    assert_equal(*both)
    assert [unit[0].weight for unit in kept.train.units] == [0.5, 2.0]
    load(**settings, cache=False)
    assert counting.asked == 6


@pytest.mark.parametrize(
    "change",
    [{"max_length": 61}, {"over_length": "cut"}, {"train_on": "final"}, {"weight": None}, {"rows": 1}, {"tokenizer": 1}],
    ids=lambda change: next(iter(change)),
)
def test_another_file_tokenizer_or_setting_is_rendered_anew(
    tmp_path: Path, load: Any, counting: Any, tokenizer_directory: Path, change: dict[str, Any]
):
    path = write(tmp_path / "a.jsonl", chat("4", w=0.5))
    settings = {"train": path, "weight": "w", "max_length": 60}
    load(**settings)
    if "rows" in change:
        write(path, chat("5", w=0.5))
    model = write_qwen3(tmp_path / "qwen3") if "tokenizer" in change else tokenizer_directory
    load(**{**settings, **{key: value for key, value in change.items() if key in SFTData.model_fields}}, model=model)
    assert counting.asked == 2


def test_token_arrays_beside_the_rollouts_are_part_of_them(tmp_path: Path, load: Any):
    path = write(tmp_path / "R.jsonl", rollout(0), rollout(1))
    store = TokenStore(tmp_path / "R.tokens")
    store.append([((0, 0, 0), TURNS)])
    first = load(train=path)
    assert origins(first.train.units) == [f"{path}:1"]
    store.append([((1, 0, 0), TURNS)])
    second = load(train=path)
    assert origins(second.train.units) == [f"{path}:1", f"{path}:2"]
    assert first.digests["data"] != second.digests["data"]


def test_a_row_of_a_validation_set_is_refused_like_any_other(tmp_path: Path, load: Any):
    good, bad = write(tmp_path / "a.jsonl", chat("4")), write(tmp_path / "val.jsonl", chat("4"), {"prompt": "a"})
    with pytest.raises(DataError, match=r"val\.jsonl:2: expected 'messages'"):
        load(train=good, validation={"held_out": bad})
    with pytest.raises(ConfigError, match=r"missing\.jsonl"):
        load(train=good, validation={"held_out": tmp_path / "missing.jsonl"})


def test_tokens_beyond_the_models_vocabulary_are_refused(tmp_path: Path, tokenizer_directory: Path):
    model = tmp_path / "model"
    model.mkdir()
    for file in tokenizer_directory.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 100}}))
    settings = SFTData(train=write(tmp_path / "a.jsonl", chat("4")))
    with pytest.raises(DataError, match=r"a\.jsonl:1: token id \d+ is outside the model's vocabulary of 100"):
        load_data(settings, sft_reader(settings, load_renderer(model)), model=model, cache=None)


def test_margins_are_kept_in_the_cache(tmp_path: Path, counting: Any, tokenizer_directory: Path):
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "gap": 1.5}
    path = write(tmp_path / "pairs.jsonl", pair)
    for margin, expected, asked in (("gap", 1.5, 2), ("gap", 1.5, 2), (None, 0.0, 4)):
        settings = RewardModelData(train=path, margin=margin)
        reader = scored_pair_reader(settings, counting)
        data = load_data(settings, reader, model=tokenizer_directory, cache=tmp_path / "cache")
        assert ([one.margin for one in data.train.units[0]], counting.asked) == ([expected, 0.0], asked)
