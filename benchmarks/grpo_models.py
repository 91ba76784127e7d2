"""A model of random weights that can chat: what the GPU mode of the benchmark of online training trains."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.train_shapes import random_model, shape
from gym_bridge.tokens.chatml import TEMPLATE

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def chat_model(name: str, directory: Path) -> Path:
    """A Hugging Face directory of the shape called `name`, with a tokenizer of bytes, filled up with words that nobody writes."""
    random_model(name, directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"word{number}" for number in range(shape(name).vocab_size - len(CONTROL) - len(alphabet))]
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
