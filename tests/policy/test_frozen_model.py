import json
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gym_bridge.errors import ConfigError
from gym_bridge.policy.frozen_model import FrozenModel, open_teacher
from gym_bridge.schemas.settings import PolicySettings
from tests.policy.stage import open_policy
from tests.tiny_models import ENDS, SIZES

SETTINGS = PolicySettings(compute_dtype="float32", microbatch_tokens=16)


@pytest.fixture
def other(tiny_llama, tmp_path):
    """other(change): a copy of the model whose tokenizer.json `change` was applied to."""

    def build(change):
        directory = tmp_path / "other"
        shutil.copytree(tiny_llama, directory)
        file = directory / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        change(tokenizer)
        file.write_text(json.dumps(tokenizer))
        return directory

    return build


def of_vocabulary(size, directory, tokenizer):
    """A model that gives log-probs of `size` tokens."""
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, **ENDS, "vocab_size": size})).save_pretrained(directory)
    shutil.copyfile(tokenizer / "tokenizer.json", directory / "tokenizer.json")
    return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_logprobs_are_those_of_a_policy_of_that_model(tiny_qwen3, group, dtype):
    frozen = FrozenModel(tiny_qwen3, SETTINGS.model_copy(update={"compute_dtype": dtype}))
    expected = open_policy(tiny_qwen3, compute_dtype=dtype, microbatch_tokens=16).logprobs(group)
    assert {one.dtype for one in frozen.module.parameters()} == {getattr(torch, dtype)}
    for _ in range(2):
        found = frozen.logprobs(group)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_teacher_of_another_architecture_with_another_template_teaches(tiny_llama, tiny_qwen3, group, tmp_path):
    shutil.copytree(tiny_qwen3, tmp_path / "teacher")
    (tmp_path / "teacher" / "chat_template.jinja").write_text("{{ messages }}")
    teacher = open_teacher(tmp_path / "teacher", SETTINGS, learner=tiny_llama)
    for one, other in zip(teacher.logprobs(group), open_policy(tiny_qwen3).logprobs(group), strict=True):
        torch.testing.assert_close(one, other)


def test_a_teacher_padded_to_more_ids_teaches_and_one_of_fewer_is_refused(tiny_llama, group, tmp_path):
    larger = of_vocabulary(448, tmp_path / "larger", tiny_llama)
    assert all(torch.isfinite(one).all() for one in open_teacher(larger, SETTINGS, learner=tiny_llama).logprobs(group))
    with pytest.raises(ConfigError, match=r"teacher=.* knows 400 token ids, but .*larger can sample 448; choose a larger model"):
        open_teacher(tiny_llama, SETTINGS, learner=larger)


def swapped(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary["A"] = vocabulary["A"], vocabulary["!"]


def added(tokenizer):
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 1000, "content": "<|tool|>"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, r"its \d+ tokens are not the policy's \d+: '!' is id 35 to it and id 3 to the policy"),
        (added, r"its \d+ tokens are not the policy's \d+: '<\|tool\|>' is id \d+ to it and unknown to the policy"),
    ],
)
def test_a_teacher_of_other_tokens_is_refused_in_one_line(tiny_llama, other, change, message):
    directory = other(change)
    expected = rf"^algorithm.teacher={directory}: {message}; choose a model with the tokenizer of {tiny_llama}$"
    with pytest.raises(ConfigError, match=expected):
        open_teacher(directory, SETTINGS, learner=tiny_llama)


def test_a_teacher_without_a_tokenizer_is_refused(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "teacher")
    (tmp_path / "teacher" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"algorithm.teacher=.*teacher: no tokenizer.json there; give a Hugging Face directory"):
        open_teacher(tmp_path / "teacher", SETTINGS, learner=tiny_llama)
