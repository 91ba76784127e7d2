"""`gym-bridge checkpoint inspect`: what a model's directory is, what it holds, whether it is whole."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gym_bridge.api.model_places import Layout, ModelPlace, locate_model, step_number
from gym_bridge.errors import PolicyError, missing_extra
from gym_bridge.io.digests import digest_weights

SHAPE_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)
RUN_KEYS = ("policy.model", "policy.lr", "policy.lora.rank", "policy.lora.alpha", "data.train", "env.server", "trainer.seed")


@dataclass(slots=True, kw_only=True)
class CheckpointReport:
    """What stands at a path."""

    path: Path
    kind: str
    weights: Path
    step: int | None = None
    """Optimizer updates behind the weights."""
    architecture: str | None = None
    num_parameters: dict[str, int] = field(default_factory=dict)
    """By dtype."""
    num_bytes: int = 0
    num_nan: int = 0
    num_infinite: int = 0
    shape: dict[str, Any] = field(default_factory=dict)
    """Sizes out of the model's config."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Those of the run that matter most."""
    tokenizer: str | None = None
    tokenizer_size: int | None = None
    has_chat_template: bool = False
    adapter: dict[str, Any] | None = None
    """Rank, alpha and layers of the LoRA adapter."""
    sha256: str | None = None
    """Over the weight files."""
    problems: list[str] = field(default_factory=list)
    """Why it is not whole, or of no use."""


def inspect_checkpoint(path: Path) -> CheckpointReport:
    """What stands at `path`; damage is listed and raises nothing. Raises ConfigError when there is no model."""
    place = locate_model(Path(path))
    report = CheckpointReport(path=Path(path), kind=_kind(place), weights=place.weights)
    _read_config(place, report)
    _read_tokenizer(place, report)
    _read_run(place, report)
    _read_adapter(place, report)
    if place.layout in (Layout.PICKLED_DCP, Layout.PICKLED_HUGGING_FACE):
        report.problems.append("the weights are pickles and were not read; checkpoint import --trust-pickle makes them safetensors")
    else:
        _read_weights(place, report)
    return report


def _kind(place: ModelPlace) -> str:
    return f"{place.owner}, {place.layout}" if place.owner else str(place.layout)


def _read_config(place: ModelPlace, report: CheckpointReport) -> None:
    config = _json(place.weights / "config.json", report) or {}
    names = config.get("architectures") or [config.get("model_type")]
    report.architecture = names[0]
    report.shape = {key: config[key] for key in SHAPE_KEYS if key in config}


def _read_tokenizer(place: ModelPlace, report: CheckpointReport) -> None:
    directory = next((one for one in (place.weights, place.tokenizer) if one and (one / "tokenizer_config.json").exists()), None)
    if directory is None:
        return
    settings = _json(directory / "tokenizer_config.json", report) or {}
    report.tokenizer = settings.get("tokenizer_class", "unknown class")
    report.has_chat_template = bool(settings.get("chat_template")) or (directory / "chat_template.jinja").exists()
    if (directory / "tokenizer.json").exists():
        found = _json(directory / "tokenizer.json", report) or {}
        ids = [*_vocabulary(found), *(one.get("id", -1) for one in found.get("added_tokens", []))]
        report.tokenizer_size = max(ids, default=-1) + 1
        if report.tokenizer_size > report.shape.get("vocab_size", report.tokenizer_size):
            report.problems.append(f"the tokenizer has {report.tokenizer_size} tokens, the model {report.shape['vocab_size']}")


def _vocabulary(tokenizer: dict[str, Any]) -> list[int]:
    """Token ids of the model in a `tokenizer.json`, which lists them as a mapping or, for unigrams, in their order."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    return [*vocabulary.values()] if isinstance(vocabulary, dict) else [*range(len(vocabulary))]


def _read_run(place: ModelPlace, report: CheckpointReport) -> None:
    if place.checkpoint is None:
        step_directory = place.tokenizer.parents[1] if place.tokenizer else report.path
        report.step = step_number(step_directory)
        return
    state = _json(place.checkpoint / "trainer" / "state.json", report, required=True) or {}
    report.step = state.get("version")
    optimizer = place.checkpoint / "trainer" / "optimizer"  # of several processes a directory
    if not any(optimizer.glob("*.safetensors")) and not optimizer.with_suffix(".safetensors").exists():
        report.problems.append("no trainer/optimizer.safetensors: training cannot go on from here")
    config = place.checkpoint.parents[1] / "config.yaml"
    if config.exists():
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        try:
            settings = OmegaConf.load(config)
            found = {key: OmegaConf.select(settings, key) for key in (*RUN_KEYS, "algorithm")}
        except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
            report.problems.append(f"{config}: {' '.join(str(error).split())}")
            return
        algorithm = found.pop("algorithm") or {}
        report.settings = {key: value for key, value in found.items() if value is not None}
        report.settings |= {f"algorithm.{key}": value for key, value in algorithm.items()}


def _read_adapter(place: ModelPlace, report: CheckpointReport) -> None:
    directory = place.weights if place.layout is Layout.ADAPTER else place.adapter
    if directory is None:
        return
    config = _json(directory / "adapter_config.json", report) or {}
    names = {"rank": "r", "alpha": "lora_alpha", "layers": "target_modules", "base": "base_model_name_or_path"}
    report.adapter = {ours: config.get(theirs) for ours, theirs in names.items()}
    if not (directory / "adapter_model.safetensors").exists():
        report.problems.append(f"{directory}: no adapter_model.safetensors")


def _read_weights(place: ModelPlace, report: CheckpointReport) -> None:
    try:
        from gym_bridge.policy.exporting import weight_files
        from gym_bridge.policy.inspection import survey_weights
    except ImportError:
        raise missing_extra("reading weights", "train") from None
    try:
        survey = survey_weights(weight_files(place.weights))
        report.problems += _missing(place, survey.names)
    except PolicyError as error:
        report.problems.append(str(error))
        return
    report.num_parameters, report.num_bytes = dict(survey.num_parameters), survey.num_bytes
    report.num_nan, report.num_infinite = survey.num_nan, survey.num_infinite
    report.sha256 = digest_weights(place.weights)
    if survey.not_finite:
        report.problems.append(
            f"{survey.num_nan} weights are NaN and {survey.num_infinite} infinite, in {len(survey.not_finite)} tensors "
            f"such as {survey.not_finite[0]}"
        )


def _missing(place: ModelPlace, names: set[str]) -> list[str]:
    """What a model of this config has and these weights have not."""
    if place.layout is Layout.DCP:
        from gym_bridge.policy.distributed_files import whole_tensors

        whole_tensors(place.weights)
        return []
    if place.layout is not Layout.HUGGING_FACE:
        return []
    from gym_bridge.policy.importing import expected_shapes

    expected, tied = expected_shapes(place.weights)
    missing = sorted({*expected} - {*tied} - names)
    return [f"{len(missing)} weights are missing, such as {missing[0]}"] if missing else []


def _json(file: Path, report: CheckpointReport, *, required: bool = False) -> dict[str, Any] | None:
    """The object in a file, None where there is none; a damaged file becomes one of the report's problems."""
    if not file.exists():
        if required:
            report.problems.append(f"no {file.parent.name}/{file.name}")
        return None
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        report.problems.append(f"{file}: {error}")
        return None
    if not isinstance(found, dict):
        report.problems.append(f"{file}: expected a JSON object")
        return None
    return found
