"""A tiny reward model on the disk."""

import shutil
from pathlib import Path
from typing import Any


def write_reward_model(tiny_llama: Path, directory: Path, **changed: Any) -> Path:
    """The tiny Llama with a scalar head, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_llama / name, directory / name)
    config = AutoConfig.from_pretrained(tiny_llama, **{"num_labels": 1, **changed})
    torch.manual_seed(11)
    module = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for param in module.parameters():
            param.normal_(std=0.25) if param.dim() == 2 else param.uniform_(0.5, 1.5)
    module.save_pretrained(directory)
    return directory
