"""From a directory to a module: dtype, device, GGUF files unpacked."""

import fcntl
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy.allocator import keep_freed_memory
from gym_bridge.schemas.seams import Head

SCORE = "score.weight"  # of every family for sequence classification over a decoder

log = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """The torch device of this name. Raises ConfigError when torch knows none, and when this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"policy.device={name}: no device of torch; expected cpu, cuda, cuda:1, ...") from None
    here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    try:
        usable = device.type != "meta" and torch.zeros(1, device=device).item() == 0
    except (RuntimeError, AssertionError):  # the second where torch is built without it
        usable = False
    if not usable:
        raise ConfigError(f"policy.device={name}: not on this machine; it has {', '.join(here)}")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype for `auto`, `float32` or `bfloat16`; auto is bfloat16 where the device has instructions for it."""
    if name == "auto":
        native = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else torch.backends.mkldnn.is_available() and _cpu_has_bfloat16()
        )
        return torch.bfloat16 if native else torch.float32
    return getattr(torch, name)


def load_module(
    directory: Path, *, device: torch.device, dtype: torch.dtype = torch.float32, head: Head = "lm", attention: str | None = None
) -> PreTrainedModel:
    """The model of a Hugging Face directory, in evaluation mode: a causal language model, or for the scalar head one for sequence
    classification with one label. A language model gets a scalar head of random weights, the same ones each time. `attention` is
    transformers' name of an implementation; None: its own choice, which is not sdpa where logits are capped.

    Raises PolicyError when transformers cannot load it, and when weights are missing.
    """
    transformers_logging.disable_progress_bar()
    if device.type == "cpu":
        keep_freed_memory()
    family, options = _kind(head)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is told below, and a new head is no surprise
    try:
        loaded: Any = family.from_pretrained(
            directory, dtype=dtype, attn_implementation=attention, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise PolicyError(f"{directory}: transformers cannot load this model: {error}") from error
    finally:
        transformers_logging.set_verbosity(level)
    module, told = loaded
    missing = {*told["missing_keys"]}
    if head == "scalar" and SCORE in missing:
        missing.remove(SCORE)
        weight = module.get_parameter(SCORE)
        with torch.no_grad():
            weight.copy_(first_score_weight(module))
    if missing:
        kind = "a language model" if head == "lm" else "a language model or a reward model"
        raise PolicyError(f"{directory}: no weights for {min(missing)}; expected {kind}, found a model of another kind")
    module.to(device)
    return module.eval()


def outline(directory: Path, *, head: Head) -> PreTrainedModel:
    """As `load_module`, in float32, without memory for weights: on the meta device. Raises PolicyError as it does."""
    family, options = _kind(head)
    try:
        config = AutoConfig.from_pretrained(directory, **options)
        with torch.device("meta"):
            module = family.from_config(config, dtype=torch.float32, attn_implementation="eager")
    except (OSError, ValueError, KeyError) as error:
        raise PolicyError(f"{directory}: transformers cannot make this model: {error}") from error
    return module.eval()


def first_score_weight(module: PreTrainedModel) -> torch.Tensor:
    """Random weights for a scalar head, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(module.get_parameter(SCORE).shape, generator=generator) * module.config.initializer_range


def unpack_gguf(file: Path, directory: Path, *, plain_chatml_template: Path) -> Path:
    """Turn a GGUF file into a Hugging Face directory at `directory`, unless it stands there; returns `directory`.

    A chat template that is ChatML without tools is replaced by `plain_chatml_template`, which adds them. Of several processes one
    unpacks, and the others wait for it.
    """
    if (directory / "config.json").exists():
        return directory
    with directory.with_name(f".{directory.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, or the process has died
        if not (directory / "config.json").exists():
            _unpack(file, directory, plain_chatml_template)
    return directory


def _unpack(file: Path, directory: Path, plain_chatml_template: Path) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{file}: reading GGUF files needs the 'train' extra: pip install 'gym-bridge[train]'") from error
    from transformers import AutoTokenizer, GgufConfig

    log.info("unpacking %s to %s", file, directory)
    transformers_logging.disable_progress_bar()
    aside = directory.with_name(f".{directory.name}.unpacking")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    names = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    quantization = GgufConfig(dequantize=True)
    module = AutoModelForCausalLM.from_pretrained(**names, quantization_config=quantization, dtype=torch.bfloat16)
    module.save_pretrained(aside)
    AutoTokenizer.from_pretrained(**names).save_pretrained(aside)
    template = aside / "chat_template.jinja"
    if template.exists() and "<|im_start|>" in template.read_text() and "tool" not in template.read_text():
        shutil.copyfile(plain_chatml_template, template)
    aside.rename(directory)


def _kind(head: Head) -> tuple[Any, dict[str, Any]]:
    """transformers' class for a head, and its options."""
    return (AutoModelForCausalLM, {}) if head == "lm" else (AutoModelForSequenceClassification, {"num_labels": 1})


def _cpu_has_bfloat16() -> bool:
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace") if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
