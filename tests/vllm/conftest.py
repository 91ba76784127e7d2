"""Real vLLM servers on the CPU: the small embedded model for as long as the session lasts, and a tiny one to train."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.hub import EMBEDDED, resolve
from gym_bridge.tokens.chatml import TEMPLATE
from tests.conftest import write_chatml_tokenizer
from tests.tiny_models import ENDS, SIZES
from tests.vllm.playing import CONTEXT_LENGTH, MODEL, ServedModel
from tests.vllm.process import VLLMProcess


@pytest.fixture(scope="session")
def model_directory() -> Path:
    """The embedded model as a Hugging Face directory."""
    from gym_bridge.policy.loading import unpack_gguf

    try:
        file = resolve(EMBEDDED)
    except ConfigError as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    return unpack_gguf(file, file.with_suffix(""), plain_chatml_template=TEMPLATE)


@pytest.fixture(scope="session")
def served(model_directory: Path) -> Iterator[ServedModel]:
    """The model behind vLLM's OpenAI-compatible server, with our chat template and vLLM's own tool parser."""
    words = ["--served-model-name", MODEL, "--gpu-memory-utilization", "0.4", "--dtype", "float32"]
    words += ["--max-model-len", CONTEXT_LENGTH, "--chat-template", TEMPLATE]
    with closing(VLLMProcess(model_directory, *words, "--enable-auto-tool-choice", "--tool-call-parser", "hermes")) as server:
        server.start()
        server.wait()
        yield ServedModel(url=f"{server.url}/v1", directory=model_directory)


@pytest.fixture(scope="session")
def tiny_for_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose heads are as large as vLLM's attention on the CPU asks for."""
    return _write_tiny(tmp_path_factory.mktemp("llama"), tied=False)


@pytest.fixture(scope="session")
def tiny_tied_for_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, whose output head is its input embedding."""
    return _write_tiny(tmp_path_factory.mktemp("tied_llama"), tied=True)


def _write_tiny(directory: Path, *, tied: bool) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    write_chatml_tokenizer(directory)
    torch.manual_seed(7)
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024}
    module = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES | sizes, **ENDS, tie_word_embeddings=tied))
    with torch.no_grad():
        for param in module.parameters():
            if param.dim() == 2:
                param.normal_(std=0.1)
    module.save_pretrained(directory)
    return directory
