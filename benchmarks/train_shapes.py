"""Models of random weights in the shapes of Qwen3's small ones: what the GPU mode of the training benchmark trains."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen3Config

SHAPES: dict[str, dict[str, int]] = {
    "Qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16},
    "Qwen3-1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16},
}
SHARED = {"num_hidden_layers": 28, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}


def shape(name: str) -> Qwen3Config:
    """The configuration of the shape called `name`."""
    return Qwen3Config(**SHARED, **SHAPES[name], tie_word_embeddings=True, rope_theta=1_000_000.0, max_position_embeddings=40_960)


def random_model(config: PretrainedConfig, directory: Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A Hugging Face directory of that shape, written to `directory`."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(directory)
    return directory
