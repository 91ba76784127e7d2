"""Models in and out: `gym-bridge checkpoint export` and `import`."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gym_bridge.api.model_places import Layout, ModelPlace, layout_of, locate_model
from gym_bridge.api.models import model_directory
from gym_bridge.errors import ConfigError, ServerError, missing_extra

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16"]
RISK = "reading it runs whatever code its author put there; add --trust-pickle if you trust where it comes from"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """How a model leaves."""

    dtype: Dtype = "bfloat16"
    layout: Literal["hf", "dcp"] = "hf"
    """hf: a plain Hugging Face directory. dcp: torch.distributed.checkpoint's safetensors storage, with config and tokenizer."""
    adapter: Literal["merged", "apart"] = "merged"
    """Of a model that was trained with LoRA: the whole model, or the adapter alone."""
    max_shard_size: str = "5GB"
    push_to_hub: str | None = None
    """NAME or ORGANIZATION/NAME of a model repository, made when it is not there."""
    private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    output: Path
    source: Path
    num_bytes: int
    """Of all files."""
    url: str | None = None
    """On the hub."""


def export_checkpoint(source: str, output: Path, settings: ExportSettings | None = None) -> Exported:
    """Write the model of a run, a checkpoint, a directory or a registry name to `output`, which transformers and vLLM load.

    Raises ConfigError for a source without a model, an existing output or an unfit setting, PolicyError for damaged weights,
    ServerError when the hub refuses.
    """
    settings, output = settings or ExportSettings(), Path(output)
    token = _token() if settings.push_to_hub else None
    if settings.adapter == "apart" and settings.layout == "dcp":
        raise ConfigError("--adapter apart writes peft's layout; leave --format dcp out")
    try:
        import torch

        from gym_bridge.policy import exporting
    except ImportError:
        raise missing_extra("exporting", "train") from None
    directory = _adapter_of(source) if settings.adapter == "apart" else _model_of(source)
    dtype = getattr(torch, settings.dtype)
    max_shard_bytes = exporting.size_in_bytes(settings.max_shard_size)
    with exporting.directory_aside(output) as aside:
        if settings.adapter == "apart":
            exporting.export_adapter(directory, aside, dtype)
        else:
            exporting.copy_all_but_weights(directory, aside)
            exporting.write_dtype(aside, dtype)
            weights = exporting.cast(exporting.read_weights(directory), dtype)
            _write(aside, weights, layout=settings.layout, max_shard_bytes=max_shard_bytes)
    url = _push(output, settings.push_to_hub, private=settings.private, token=token) if settings.push_to_hub and token else None
    num_bytes = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return Exported(output=output, source=directory, num_bytes=num_bytes, url=url)


def import_checkpoint(
    source: Path, output: Path, *, model: str | None = None, trust_pickle: bool = False, max_shard_size: str = "5GB"
) -> Exported:
    """Write what lies at `source` as a plain Hugging Face directory that `policy.model` takes, in the dtype that it has.

    `model` gives config and tokenizer where `source` has none. Raises ConfigError for pickles that nobody trusts and for an
    existing output, PolicyError for a model that is not whole or that transformers cannot load.
    """
    place = locate_model(Path(source))
    if place.layout is Layout.ADAPTER:
        raise ConfigError(f"{place.weights}: an adapter is no model; merge it into its base with peft and import that")
    _check_trust(place, trust_pickle=trust_pickle)
    try:
        from gym_bridge.policy import exporting
        from gym_bridge.policy.importing import check_loads
    except ImportError:
        raise missing_extra("importing", "train") from None
    described = _described_by(place, model)
    max_shard_bytes = exporting.size_in_bytes(max_shard_size)
    with exporting.directory_aside(Path(output)) as aside:
        exporting.copy_all_but_weights(described, aside)
        if place.tokenizer:
            exporting.copy_all_but_weights(place.tokenizer, aside)
        _write(aside, _weights_of(place, aside), layout="hf", max_shard_bytes=max_shard_bytes)
        check_loads(aside)
    num_bytes = sum(file.stat().st_size for file in Path(output).rglob("*") if file.is_file())
    return Exported(output=Path(output), source=place.weights, num_bytes=num_bytes)


def _write(directory: Path, weights: "Iterable[tuple[str, Tensor]]", *, layout: str, max_shard_bytes: int) -> None:
    from gym_bridge.policy import exporting
    from gym_bridge.policy.distributed_files import write_distributed

    if layout == "dcp":
        write_distributed(directory, dict(weights), max_shard_bytes=max_shard_bytes)
    else:
        exporting.write_weights(directory, weights, max_shard_bytes=max_shard_bytes)


def _model_of(source: str) -> Path:
    directory = model_directory(source)
    layout = layout_of(directory)
    if layout not in (Layout.HUGGING_FACE, None):
        raise ConfigError(f"{directory} is a {layout}; make a plain model of it with gym-bridge checkpoint import")
    return directory


def _adapter_of(source: str) -> Path:
    place = locate_model(Path(source).expanduser())
    if place.layout is Layout.ADAPTER:
        return place.weights
    if place.adapter is None:
        raise ConfigError(f"{source}: its run trained no adapter (policy.lora is null); export it with --adapter merged")
    return place.adapter


def _check_trust(place: ModelPlace, *, trust_pickle: bool) -> None:
    """Raises ConfigError for pickles without trust; with it, one line says what that risks."""
    if place.layout is Layout.PICKLED_DCP:
        what = f"{place.weights / '.metadata'} is a pickle: "
    elif place.layout is Layout.PICKLED_HUGGING_FACE:
        what = f"{place.weights}: the weights are pickles (.bin), no safetensors: "
    else:
        return
    if not trust_pickle:
        raise ConfigError(what + RISK)
    log.warning("%sit is read as trusted, with whatever code its author put there", what)


def _described_by(place: ModelPlace, model: str | None) -> Path:
    """The directory of config and tokenizer. Raises ConfigError when nothing gives them."""
    if model is not None:
        return model_directory(model)
    if (place.weights / "config.json").exists():
        return place.weights
    name = _nemo_rl_model(place.nemo_rl_config)
    hint = f"--model {name}, as {place.nemo_rl_config} says" if name else "--model BASE, the model that its training started from"
    raise ConfigError(f"{place.weights} has weights and no config.json; add {hint}")


def _nemo_rl_model(config: Path | None) -> str | None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if config is None:
        return None
    try:
        return OmegaConf.select(OmegaConf.load(config), "policy.model_name")
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError):
        return None


def _weights_of(place: ModelPlace, described: Path) -> "Iterable[tuple[str, Tensor]]":
    from gym_bridge.policy.distributed_files import read_distributed, with_own_names
    from gym_bridge.policy.exporting import cast, read_weights
    from gym_bridge.policy.importing import expected_shapes, read_pickled_weights

    if place.layout is Layout.HUGGING_FACE:
        return cast(read_weights(place.weights), None)
    if place.layout is Layout.PICKLED_HUGGING_FACE:
        weights = dict(read_pickled_weights(place.weights))
    else:
        weights = read_distributed(place.weights, pickled=place.layout is Layout.PICKLED_DCP)
    return cast(with_own_names(weights, *expected_shapes(described)).items(), None)


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise ConfigError("--push-to-hub needs a token of the Hugging Face hub that may write: set HF_TOKEN in the environment")
    return token


def _push(directory: Path, name: str, *, private: bool, token: str) -> str:
    """Upload a directory to a model repository; returns its URL. Raises ServerError; what was written stays."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=directory, commit_message="Exported by gym-bridge")
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {name}: {error}; {directory} was written") from None
    except (HTTPError, OSError, ValueError) as error:
        response = getattr(error, "response", None)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).replace(token, "***")
        raise ServerError(
            f"cannot upload to {name}: {reason}; {directory} was written, and hf upload {name} {directory} tries again",
            url=api.endpoint,
            status=getattr(response, "status_code", None),
        ) from None
    return str(repository)
