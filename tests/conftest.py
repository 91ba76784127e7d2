"""Tiny real models, of two layers, random weights and a ChatML tokenizer, and a disk that fills up."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import ENDS, SIZES

CORPUS = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "system user assistant tool <tool_call> </tool_call> <think> </think> name arguments function",
    'To call one, write:\n<tool_call>\n{"name": "function name", "arguments": {"argument": "value"}}\n</tool_call>',
    "What is 2+2? 4\n\nThe answer is 4.\n\n",
)


def write_chatml_tokenizer(directory: Path) -> None:
    """A byte-level BPE of 400 tokens with ChatML's control tokens, and the house's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from gym_bridge.tokens.chatml import TEMPLATE

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copyfile(TEMPLATE, directory / "chat_template.jinja")


def _write_model(directory: Path, config) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # threads cost more than they bring to models this small
    write_chatml_tokenizer(directory)
    torch.manual_seed(7)
    module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for param in module.parameters():
            if param.dim() == 2:  # larger than the usual start, so that attention and context matter
                param.normal_(std=0.25)
            else:
                param.uniform_(0.5, 1.5)
    module.save_pretrained(directory)
    return directory


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="many rounds instead of a few")


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_chatml_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def renderer(tokenizer_directory):
    from gym_bridge.tokens.renderers import load_renderer

    return load_renderer(tokenizer_directory)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Llama: an output embedding of its own."""
    from transformers import LlamaConfig

    return _write_model(tmp_path_factory.mktemp("llama"), LlamaConfig(**SIZES, **ENDS, tie_word_embeddings=False))


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory) -> Path:
    """Qwen3: norms on queries and keys, tied embeddings."""
    from transformers import Qwen3Config

    return _write_model(tmp_path_factory.mktemp("qwen3"), Qwen3Config(**SIZES, **ENDS, head_dim=16, tie_word_embeddings=True))


@pytest.fixture(scope="session", params=["llama", "qwen3"])
def tiny_model(request) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def training_sequence():
    """sequence("ppTTp", ids): capital letters train."""
    from gym_bridge.schemas.tokens import TrainingSequence

    def build(marks, ids, *, advantage=1.0, old=None):
        mask = np.array([mark.isupper() for mark in marks])
        logprobs = None if old is None else np.where(mask, np.float32(old), np.float32("nan")).astype(np.float32)
        return TrainingSequence(
            token_ids=np.array(ids, dtype=np.int32), train_mask=mask, rollout_logprobs=logprobs, advantage=advantage
        )

    return build


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB; skips where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
