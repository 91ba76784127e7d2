"""What tests of recipes share."""

import shutil
from pathlib import Path

import pytest

from tests.tiny_models import ENDS


@pytest.fixture(scope="session")
def ending_model(tiny_qwen3: Path, tmp_path_factory) -> Path:
    """A model of random weights that ends its answers soon."""
    import torch
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("ending") / "model"
    shutil.copytree(tiny_qwen3, place)
    module = AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        module.get_output_embeddings().weight[ENDS["eos_token_id"]] *= 4.0
    module.save_pretrained(place)
    return place
