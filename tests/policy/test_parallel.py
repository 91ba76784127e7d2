"""Shards over real processes, against the same in one process."""

import math

import pytest
import torch

from gym_bridge.errors import ConfigError
from gym_bridge.policy.loading import load_module
from gym_bridge.policy.parallel import check_shardable
from gym_bridge.policy.ranks import Ranks
from gym_bridge.policy.step_tally import StepTally, merged
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import PolicySettings
from tests.policy.ranks_stage import on_ranks
from tests.policy.test_families import FAMILIES, write_model

pytestmark = pytest.mark.slow

UNREADABLE = "qwen3 of experts"  # transformers joins the experts of its files when it loads them


@pytest.mark.parametrize(("dtype", "of_loss", "of_gradients"), [("float64", 1e-5, 1e-6), ("float32", 1e-4, 1e-4)])
def test_twenty_steps_of_each_trainer_are_those_of_one_process(tiny_llama, tmp_path, dtype, of_loss, of_gradients):
    told = on_ranks(2, "steps_and_gradients", tmp_path / "told", tiny_llama, dtype)
    assert told.keys() == {"sft", "dpo", "grpo"}
    for found in told.values():
        assert found["gradients"] <= of_gradients
        for one, other in zip(found["whole"], found["shards"], strict=True):
            assert math.isclose(one["loss"], other["loss"], abs_tol=of_loss)
            assert one.keys() == other.keys()
            for name in one.keys() & {"num_trained_tokens", "num_packed_tokens", "accuracy", "clip_fraction", "lr"}:
                assert math.isclose(one[name], other[name], abs_tol=1e-9), name
            for name in one.keys() & {"grad_norm", "entropy", "margin", "ratio_max", "ratio_min", "gap_max", "kl"}:
                assert math.isclose(one[name], other[name], rel_tol=1e-3, abs_tol=1e-4), name


@pytest.mark.gpu
def test_a_rank_on_a_gpu_takes_the_steps_of_one_process_there(tiny_llama, tmp_path):
    for found in on_ranks(1, "steps_and_gradients", tmp_path / "told", tiny_llama, "float32", "cuda").values():
        assert found["gradients"] <= 1e-3
        for one, other in zip(found["whole"], found["shards"], strict=True):
            assert math.isclose(one["loss"], other["loss"], rel_tol=1e-3, abs_tol=1e-3)


def test_every_family_is_read_in_shards_as_it_is_in_one_process_or_refused_by_its_files(tmp_path):
    places = {str(write_model(tmp_path / str(number), options)): name for number, (name, options) in enumerate(FAMILIES.items())}
    told = on_ranks(2, "families", tmp_path / "told", "float32", *places)
    for place, found in told.items():
        if places[place] == UNREADABLE:
            assert "several processes cannot read this model" in found
        else:
            assert not isinstance(found, str), found
            assert found <= 1e-5, places[place]


def test_weights_are_rounded_to_bfloat16_as_in_one_process(tiny_llama, tiny_qwen3, tmp_path):
    told = on_ranks(2, "families", tmp_path / "told", "bfloat16", tiny_llama, tiny_qwen3)
    assert max(told.values()) <= 0.05


def test_first_heads_of_scores_and_values_are_those_of_one_process(tiny_llama, tmp_path):
    told = on_ranks(2, "heads", tmp_path / "told", tiny_llama)
    for head, ((whole, shape), (shards, other_shape)) in told.items():
        assert shape == other_shape
        assert any(any(one) for one in whole) == (head == "scalar")
        for one, other in zip(whole, shards, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("num_ranks", [3])
def test_no_rank_holds_more_than_its_share(tiny_llama, tmp_path, num_ranks):
    assert on_ranks(num_ranks, "no_whole_copy", tmp_path / "told", tiny_llama) == pytest.approx(1 / num_ranks, rel=0.05)


def test_a_missing_file_of_moments_is_told_and_nothing_is_made_up(tiny_llama, tmp_path):
    told = on_ranks(2, "shard_missing", tmp_path / "told", tiny_llama, tmp_path / "checkpoint")
    assert told.keys() == {"1", "2"}
    assert all("whole" in one for one in told.values())


def test_a_large_model_is_written_in_several_files_that_transformers_reads(tiny_llama, tmp_path):
    names = on_ranks(2, "files_of_a_model", tmp_path / "told", tiny_llama, tmp_path / "checkpoint")
    assert {"model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "model.safetensors.index.json"} <= {*names}
    found, expected = (load_module(one, device=torch.device("cpu")) for one in (tmp_path / "checkpoint" / "model", tiny_llama))
    for (name, one), (_, other) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_microbatches_are_dealt_out_with_stand_ins_and_their_numbers_are_put_together():
    ranks = [Ranks(index=index, size=3, local_index=index, channel=None) for index in range(3)]
    assert [one.dealt("abcd") for one in ranks] == [
        [("a", True), ("d", True)],
        [("b", True), ("a", False)],
        [("c", True), ("a", False)],
    ]
    assert [one.dealt([]) for one in ranks] == [[], [], []]
    first, second = StepTally(7), StepTally(7)
    zero = torch.zeros(())
    first.add(1.0, Loss(zero, {"kl": 0.5}, largest={"ratio_max": 2.0}, smallest={"ratio_min": 0.9}), None, packed_tokens=5)
    second.add(
        2.0, Loss(zero, {"kl": 0.25, "only": 1.0}, largest={"ratio_max": 3.0}, smallest={"ratio_min": 0.8}), None, packed_tokens=6
    )
    assert merged([first, second, StepTally(7)]) == {
        "loss": 3.0,
        "num_trained_tokens": 7,
        "num_packed_tokens": 11,
        "kl": 0.75,
        "only": 1.0,
        "ratio_max": 3.0,
        "ratio_min": 0.8,
    }


def test_what_is_not_finite_on_any_rank_is_blamed_on_its_sequences_and_nothing_changes(tiny_llama, tmp_path):
    told = on_ranks(2, "blame", tmp_path / "told", tiny_llama)
    lengths = [8, 9, 10, 11]
    assert {name: told.pop(name) for name in ("unchanged", "goes on")} == {"unchanged": True, "goes on": True}
    assert told == {f"{kind} {place}": [length] for kind in ("loss", "gradient") for place, length in enumerate(lengths)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"rank": 4}}, "policy.lora: adapters over several processes are not built"),
        ({"optimizer": "adamw_8bit"}, "policy.optimizer=adamw_8bit: moments of 8 bits have no shards"),
        ({"device": "cuda:1"}, "policy.device=cuda:1: each of several processes has a device of its own"),
        ({"backend": "my:Policy"}, "policy.backend=my:Policy: only policy.backend=torch trains in several processes"),
        ({"family": "my:Family"}, "policy.family=my:Family: only models of transformers can be sharded"),
    ],
)
def test_what_shards_do_not_have_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_shardable(PolicySettings.model_validate(settings))


@pytest.mark.parametrize(("model", "tied"), [("llama", None), ("qwen3", ["lm_head.weight", "model.embed_tokens.weight"])])
def test_followers_do_what_the_leader_asks_however_it_leaves_off(request, tmp_path, model, tied):
    told = on_ranks(2, "led", tmp_path / "told", request.getfixturevalue(f"tiny_{model}"))
    assert told == {"same": True, "none": [], "stepped": True, "version": 6, "ratio": pytest.approx(0.5), "tied": tied}
