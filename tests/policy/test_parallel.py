"""Shards over real processes, against the same in one process."""

import math

import pytest
import torch

from gym_bridge.errors import ConfigError
from gym_bridge.policy.loading import load_module
from gym_bridge.policy.parallel import check_shardable
from gym_bridge.policy.ranks import dealt
from gym_bridge.policy.rehearsal import rehearse
from gym_bridge.policy.step_tally import StepTally, merged
from gym_bridge.schemas.seams import Loss
from gym_bridge.schemas.settings import PolicySettings
from tests.policy.ranks_stage import on_ranks
from tests.policy.test_families import FAMILIES, write_model

pytestmark = pytest.mark.slow

FSDP, TP, SP = {}, {"tensor_parallel_size": 2}, {"tensor_parallel_size": 2, "sequence_parallel": True}
LORA = {"lora": {"rank": 4}}
OFFLOADED = {"cpu_offload": True}
CP = {"context_parallel_size": 2}
LAYOUTS = {
    "fsdp": (2, FSDP),
    "tp": (2, TP),
    "cp": (2, CP),
    "fsdp x tp": (4, SP),
    "fsdp x cp, LoRA": (4, CP | LORA),
    "cp x tp": (4, CP | SP),
    "fsdp, LoRA": (2, LORA),
    "fsdp, offloaded": (2, OFFLOADED),
}
"""Processes, and how layers and tokens are shared among them."""
LONG = ("fsdp", "tp", "cp", "fsdp x tp")
"""Layouts that take 20 steps, the others five."""
REHEARSED_TOKENS = 200
REFUSED = {
    "fsdp": {"qwen3 of experts": "several processes cannot read this model"},
    "tp": {"qwen3 of experts": "has moe_tp_experts, which is not built", "gpt-oss": "no plan of tensor parallel"},
    "cp": {"qwen3 of experts": "several processes cannot read this model"},
}
UNEVEN = {"1 heads of keys": {"num_key_value_heads": 1}, "63 inner features": {"intermediate_size": 63}}


def num_steps(layout: str) -> int:
    return 20 if layout in LONG else 5


@pytest.fixture(scope="module")
def family_models(tmp_path_factory):
    """Families by the directory of a model of each."""
    place = tmp_path_factory.mktemp("families")
    return {str(write_model(place / str(number), one)): name for number, (name, one) in enumerate(FAMILIES.items())}


@pytest.fixture(scope="module")
def uneven_models(tmp_path_factory):
    """What cannot be cut in two, by the directory of a model that has it."""
    place = tmp_path_factory.mktemp("uneven")
    return {str(write_model(place / what[0], FAMILIES["llama"], **sizes)): what for what, sizes in UNEVEN.items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def told(tmp_path_factory, tiny_llama, tiny_qwen3, family_models, uneven_models, checkpoints):
    """What every scenario gives, by its key."""
    calls: dict[int, dict[str, list]] = {2: {}, 3: {}, 4: {}}
    for name, (num_ranks, cut) in LAYOUTS.items():
        calls[num_ranks] |= {
            f"steps, {name}": ["steps_and_gradients", tiny_llama, cut, "float64", num_steps(name)],
            f"steps in float32, {name}": ["steps_and_gradients", tiny_llama, cut, "float32", 1],
            f"bytes, {name}": ["bytes_of_steps", tiny_llama, cut, REHEARSED_TOKENS],
        }
    for name, cut in (("fsdp", FSDP), ("tp", SP), ("cp", CP)):
        calls[2] |= {
            f"families, {name}": ["families", cut, "float32", *family_models],
            f"bfloat16, {name}": ["families", cut, "bfloat16", tiny_llama, tiny_qwen3],
            f"heads, {name}": ["heads", tiny_llama, cut],
        }
    calls[2] |= {
        "uneven": ["families", TP, "float32", *uneven_models],
        "heads, LoRA": ["heads", tiny_llama, LORA],
        "missing": ["shard_missing", tiny_llama, checkpoints / "missing"],
        "files": ["files_of_a_model", tiny_llama, checkpoints / "files"],
        "blame, fsdp": ["blame", tiny_llama, FSDP],
        "led, llama": ["led", tiny_llama],
        "led, qwen3": ["led", tiny_qwen3],
    }
    calls[3] |= {
        "share": ["no_whole_copy", tiny_llama, FSDP],
        "uneven": ["families", {"context_parallel_size": 3}, "float32", tiny_llama],
    }
    calls[4] |= {"share": ["no_whole_copy", tiny_llama, TP], "blame, fsdp x tp": ["blame", tiny_llama, TP]}
    place = tmp_path_factory.mktemp("told")
    return {count: on_ranks(count, place / str(count), these) for count, these in calls.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_of_each_trainer_are_those_of_one_process(told, layout):
    found = told[LAYOUTS[layout][0]][f"steps, {layout}"]
    assert found.keys() == {"sft", "dpo", "grpo"}
    for one in found.values():
        assert one["gradients"] <= 1e-6
        assert len(one["whole"]) == len(one["shards"]) == num_steps(layout)
        for expected, metrics in zip(one["whole"], one["shards"], strict=True):
            assert math.isclose(expected["loss"], metrics["loss"], abs_tol=1e-5)
            assert expected.keys() == metrics.keys()
            for name in expected.keys() & {"num_trained_tokens", "num_packed_tokens", "accuracy", "clip_fraction", "lr"}:
                assert math.isclose(expected[name], metrics[name], abs_tol=1e-9), name
            for name in expected.keys() & {"grad_norm", "entropy", "margin", "ratio_max", "ratio_min", "gap_max", "kl"}:
                assert math.isclose(expected[name], metrics[name], rel_tol=1e-3, abs_tol=1e-4), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_in_float32_are_those_of_one_process(told, layout):
    for found in told[LAYOUTS[layout][0]][f"steps in float32, {layout}"].values():
        assert found["gradients"] <= 1e-4
        assert math.isclose(found["whole"][0]["loss"], found["shards"][0]["loss"], abs_tol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("cut", [FSDP, OFFLOADED])
def test_a_rank_on_a_gpu_takes_the_steps_of_one_process_there(tiny_llama, tmp_path, cut):
    calls = {"steps": ["steps_and_gradients", tiny_llama, cut, "float32", 20, "cuda"]}
    for found in on_ranks(1, tmp_path / "told", calls)["steps"].values():
        assert found["gradients"] <= 1e-3
        for one, other in zip(found["whole"], found["shards"], strict=True):
            assert math.isclose(one["loss"], other["loss"], rel_tol=1e-3, abs_tol=1e-3)


@pytest.mark.parametrize("layout", REFUSED)
def test_every_family_is_read_as_it_is_in_one_process_or_refused(told, family_models, layout):
    for place, found in told[2][f"families, {layout}"].items():
        name = family_models[place]
        if name in REFUSED[layout]:
            assert REFUSED[layout][name] in found
        else:
            assert not isinstance(found, str), found
            assert found <= 1e-5, name


@pytest.mark.parametrize("layout", REFUSED)
def test_weights_are_rounded_to_bfloat16_as_in_one_process(told, layout):
    assert max(told[2][f"bfloat16, {layout}"].values()) <= 0.05


@pytest.mark.parametrize("layout", [*REFUSED, "LoRA"])
def test_first_heads_of_scores_and_values_are_those_of_one_process(told, layout):
    for head, ((whole, shape), (shards, other_shape)) in told[2][f"heads, {layout}"].items():
        assert shape == other_shape
        assert any(any(one) for one in whole) == (head == "scalar")
        for one, other in zip(whole, shards, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rehearsal_by_one_process_tells_what_each_rank_holds(told, tiny_llama, layout):
    num_ranks, cut = LAYOUTS[layout]
    settings = PolicySettings(compute_dtype="float32", microbatch_tokens=REHEARSED_TOKENS, **cut)
    for index, counted in enumerate(told[num_ranks][f"bytes, {layout}"]):
        found = rehearse(tiny_llama, settings, num_processes=num_ranks, head="lm", index=index)
        assert found.peak == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("num_ranks", [3, 4])
def test_no_rank_holds_more_than_its_share(told, num_ranks):
    assert told[num_ranks]["share"] == pytest.approx(1 / num_ranks, rel=0.05)


def test_layers_that_cannot_be_cut_evenly_are_refused(told, uneven_models):
    for place, found in told[2]["uneven"].items():
        what = uneven_models[place]
        assert found == f"policy.tensor_parallel_size=2: this model has {what}, which is no multiple of it; choose a divisor"


def test_heads_that_cannot_be_dealt_out_are_refused(told):
    (found,) = told[3]["uneven"].values()
    assert found.startswith("policy.context_parallel_size=3: this model has 4 heads and 2 heads of keys, which cannot be dealt out")


def test_a_missing_file_of_moments_is_told_and_nothing_is_made_up(told):
    assert told[2]["missing"].keys() == {"1", "2"}
    assert all("whole" in one for one in told[2]["missing"].values())


def test_a_large_model_is_written_in_several_files_that_transformers_reads(told, checkpoints, tiny_llama):
    names = {*told[2]["files"]}
    assert {"model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "model.safetensors.index.json"} <= names
    found, expected = (load_module(one, device=torch.device("cpu")) for one in (checkpoints / "files" / "model", tiny_llama))
    for (name, one), (_, other) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_microbatches_are_dealt_out_with_stand_ins_and_their_numbers_are_put_together():
    assert [dealt("abcd", index=index, size=3) for index in range(3)] == [
        [("a", True), ("d", True)],
        [("b", True), ("a", False)],
        [("c", True), ("a", False)],
    ]
    assert dealt([], index=1, size=3) == []
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


@pytest.mark.parametrize("layout", ["fsdp", "fsdp x tp"])
def test_what_is_not_finite_on_any_rank_is_blamed_on_its_sequences_and_nothing_changes(told, layout):
    found = dict(told[LAYOUTS[layout][0]][f"blame, {layout}"])
    assert {name: found.pop(name) for name in ("unchanged", "goes on")} == {"unchanged": True, "goes on": True}
    lengths = [8, 9, 10, 11]
    assert found == {f"{kind} {place}": [length] for kind in ("loss", "gradient") for place, length in enumerate(lengths)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"rank": 4}, "tensor_parallel_size": 2}, "policy.lora: adapters of layers that are cut are not built"),
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
def test_followers_do_what_the_leader_asks_however_it_leaves_off(told, model, tied):
    assert told[2][f"led, {model}"].pop("teacher") <= 1e-4
    expected = {"same": True, "none": [], "stepped": True, "version": 6, "ratio": pytest.approx(0.5), "tied": tied}
    assert told[2][f"led, {model}"] == expected
