"""A model of random weights that can chat: what benchmarks of online training train where no real one is wanted."""

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PretrainedConfig

from benchmarks.train_shapes import random_model
from gym_bridge.tokens.chatml import TEMPLATE

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def chat_model(config: PretrainedConfig, directory: Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A Hugging Face directory of that shape, with a tokenizer of bytes, filled up with words that nobody writes."""
    random_model(config, directory, dtype=dtype)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"word{number}" for number in range(config.vocab_size - len(CONTROL) - len(alphabet))]
    vocabulary = {token: number for number, token in enumerate((*CONTROL, *alphabet, *words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copyfile(TEMPLATE, directory / "chat_template.jinja")
    return directory
