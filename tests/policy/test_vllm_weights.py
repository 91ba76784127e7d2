"""Weights to vLLM servers: the order of calls, and what becomes of servers that fail, vanish or come back with others."""

import threading
from pathlib import Path

import pytest
import torch

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy.samplers.vllm_control import ReplicaControl, ReplicaError, control_client, reachable
from gym_bridge.policy.samplers.vllm_engine import EngineTransfer, meeting_point
from gym_bridge.policy.samplers.vllm_transfer import AdapterTransfer, DiskTransfer, TiedHead
from gym_bridge.policy.samplers.vllm_weights import VLLMWeights
from tests.policy.vllm_stage import VLLMServer, free_port, vllm_servers, weights

PAUSE, RESUME = "POST /pause?mode=wait&clear_cache=false", "POST /resume"
LOAD, NAME = "POST /collective_rpc", "POST /update_weight_version"
RESET = "POST /reset_prefix_cache?reset_running_requests=true"
ADAPTER = "POST /v1/load_lora_adapter"


def opened(controls, directory: Path, **options) -> VLLMWeights:
    """Over the disk, without patience."""
    return VLLMWeights(
        lambda: dict(enumerate(controls)), DiskTransfer(directory), **{"in_flight": False, "patience_s": 0.0, **options}
    )


def test_a_push_pauses_loads_resets_names_and_resumes(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path)
        pushed.push(weights(3.0), 4)
        assert server.told() == [PAUSE, LOAD, RESET, NAME, RESUME]
        assert (server.weight, server.paused, pushed.runs(0), pushed.version) == (3.0, False, True, 4)
        assert pushed.version_of(server.label) == 4
        assert set(pushed.timings_s) == {"write_s", "pause_s", "load_s", "reset_s"}


def test_completions_under_way_are_frozen_where_weights_may_change_under_them(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        opened(controls, tmp_path, in_flight=True).push(weights(3.0), 1)
        assert server.told()[0] == "POST /pause?mode=keep&clear_cache=false"


def test_the_last_version_alone_stays_on_the_disk_and_none_after_the_end(tmp_path: Path):
    with vllm_servers(VLLMServer(), VLLMServer()) as controls:
        pushed = opened(controls, tmp_path / "w")
        for version in range(3):
            pushed.push(weights(float(version)), version)
            (directory,) = (tmp_path / "w").iterdir()
            assert directory.name.startswith(f"version_{version:08d}")
            assert (directory / "model.safetensors").stat().st_mode & 0o777 == 0o644
        pushed.close()
        assert not (tmp_path / "w").exists()


def test_the_same_version_with_other_weights_is_delivered_again(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path)
        pushed.push(weights(3.0), 1)
        pushed.push(weights(4.0), 1)
        assert server.weight == 4.0


def test_a_full_disk_is_an_error_and_no_server_is_touched(tiny_disk: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tiny_disk / "w")
        with pytest.raises(PolicyError, match=r"cannot write weights for vLLM to .*No space left"):
            pushed.push([("w", torch.zeros(100_000))], 1)
        assert (server.told(), pushed.version) == ([], -1)
        assert list((tiny_disk / "w").iterdir()) == []


@pytest.mark.parametrize("path", ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"])
@pytest.mark.parametrize("status", [0, 500, 503])
def test_a_server_that_fails_in_a_push_is_left_out_until_it_takes_the_weights(path: str, status: int, tmp_path: Path):
    with vllm_servers(good := VLLMServer(), bad := VLLMServer(failing={path: status})) as controls:
        pushed = opened(controls, tmp_path)
        pushed.push(weights(3.0), 1)
        assert (pushed.runs(0), pushed.runs(1), good.weight) == (True, False, 3.0)
        bad.failing.clear()
        good.told()
        pushed.ensure(1)
        assert (pushed.runs(0), pushed.runs(1), bad.weight, bad.paused) == (True, True, 3.0, False)
        assert good.told() == []


def test_a_server_that_failed_while_it_loaded_stays_paused_and_ends_what_it_holds(tmp_path: Path):
    with vllm_servers(VLLMServer(), bad := VLLMServer(failing={"/collective_rpc": 500})) as controls:
        opened(controls, tmp_path).push(weights(3.0), 1)
        assert bad.told() == [PAUSE, LOAD, "POST /pause?mode=abort&clear_cache=false"]
        assert (bad.paused, bad.label) == (True, "default")


def test_a_server_that_keeps_its_cache_is_not_sampled_from(tmp_path: Path):
    with vllm_servers(VLLMServer(), bad := VLLMServer(cache_keeps=True)) as controls:
        pushed = opened(controls, tmp_path)
        pushed.push(weights(3.0), 1)
        assert (pushed.runs(1), pushed.version_of(bad.label)) == (False, None)


def test_a_server_that_was_started_again_is_found_out_and_gets_the_weights(tmp_path: Path):
    with vllm_servers(kept := VLLMServer(), other := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path)
        pushed.push(weights(3.0), 1)
        other.stop()
        pushed.ensure(1)
        assert (pushed.runs(0), pushed.runs(1)) == (True, False)
        other.start()
        assert other.weight == 7.0
        kept.told()
        pushed.ensure(1)
        assert (pushed.runs(1), other.weight, other.told(), kept.told()) == (True, 3.0, [PAUSE, LOAD, RESET, NAME, RESUME], [])


def test_a_server_that_came_back_unseen_is_found_out_by_the_name_of_its_weights(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path)
        pushed.push(weights(3.0), 1)
        server.stop()
        server.start()
        assert pushed.version_of(server.label) is None
        pushed.ensure(1)
        assert server.weight == 3.0


def test_a_server_that_another_training_wrote_to_is_found_out(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path / "a")
        pushed.push(weights(3.0), 1)
        opened(controls, tmp_path / "b").push(weights(9.0), 1)
        assert (server.weight, pushed.version_of(server.label)) == (9.0, None)
        pushed.ensure(1)
        assert (server.weight, pushed.version_of(server.label)) == (3.0, 1)


def test_a_server_that_somebody_paused_goes_on(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path)
        pushed.push(weights(3.0), 1)
        server.paused = True
        server.told()
        pushed.ensure(1)
        assert server.told() == [RESUME]


def test_updates_whose_weights_are_not_pushed_leave_the_servers_as_they_are(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path)
        pushed.push(weights(3.0), 4)
        server.told()
        pushed.ensure(6)
        assert (server.told(), pushed.version) == ([], 4)
        with pytest.raises(PolicyError, match="version 3 are to be updated, and vLLM has 4 already"):
            pushed.ensure(3)


def test_without_any_server_a_push_ends_after_its_patience(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path)
        server.stop()
        with pytest.raises(PolicyError, match=r"no vLLM server takes version 1 of the weights: http://.*: no answer"):
            pushed.push(weights(3.0), 1)


def test_a_push_waits_for_a_server_that_comes_back(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path, patience_s=30.0)
        server.stop()
        threading.Timer(0.3, server.start).start()
        pushed.push(weights(3.0), 1)
        assert server.weight == 3.0


def test_weights_that_every_server_refuses_end_the_push_whatever_the_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gym_bridge.policy.samplers.vllm_weights.BETWEEN_TRIES_S", 0.01)
    with vllm_servers(server := VLLMServer(failing={"/collective_rpc": 500})) as controls:
        with pytest.raises(PolicyError, match="/collective_rpc answered HTTP 500: it is broken"):
            opened(controls, tmp_path, patience_s=600.0).push(weights(3.0), 1)
        assert server.told().count(LOAD) == 3


def test_a_server_without_the_routes_is_a_mistake_and_the_message_says_how_to_start_it(tmp_path: Path):
    with vllm_servers(VLLMServer(dev_mode=False)) as controls:
        with pytest.raises(ConfigError, match=r"has no /weight_info; start vLLM .* with: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL"):
            reachable(lambda: dict(enumerate(controls)), patience_s=0)
        with pytest.raises(ConfigError, match="has no /weight_info"):
            opened(controls, tmp_path).push(weights(3.0), 1)
    with vllm_servers(VLLMServer(scale_out=False)) as controls, pytest.raises(ConfigError, match="has no /inference/v1/generate"):
        reachable(lambda: dict(enumerate(controls)), patience_s=0)


def test_servers_are_waited_for_until_one_answers():
    client = control_client(None)
    nobody = ReplicaControl(f"http://127.0.0.1:{free_port()}", client)
    with pytest.raises(PolicyError, match=r"no vLLM server answers: http://.* no answer"):
        reachable(lambda: {0: nobody}, patience_s=0)
    with vllm_servers(VLLMServer()) as controls:
        assert reachable(lambda: dict(enumerate([nobody, *controls])), patience_s=0) == controls
    client.close()


def test_servers_sleep_while_the_trainer_steps_and_wake_part_by_part(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path, sleeps=True)
        pushed.push(weights(3.0), 1)
        server.told()
        pushed.ensure(1)
        pushed.ensure(2)  # a second update on the same rollouts
        assert (server.told(), pushed.runs(0)) == (["POST /sleep?level=2&mode=wait"], False)
        pushed.push(weights(4.0), 3)
        assert server.told() == ["POST /wake_up?tags=weights", LOAD, RESET, NAME, "POST /wake_up?tags=kv_cache", RESUME]
        assert (server.weight, server.paused, pushed.runs(0)) == (4.0, False, True)


def test_a_server_that_sleeps_is_woken_with_its_weights_when_it_is_to_be_sampled_from(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path, sleeps=True)
        pushed.push(weights(3.0), 1)
        pushed.ensure(1)
        assert server.weight == 0.0
        pushed.restore(0)
        assert (server.weight, server.paused, pushed.runs(0)) == (3.0, False, True)


def test_a_replica_is_restored_once_and_never_before_the_first_push(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        pushed = opened(controls, tmp_path)
        with pytest.raises(ReplicaError, match="no weights were pushed to it yet"):
            pushed.restore(0)
        pushed.push(weights(3.0), 1)
        pushed.lost(0)
        server.weight, server.label = 9.0, "default"
        server.told()
        pushed.restore(0)
        pushed.restore(0)
        assert (server.told(), server.weight) == ([PAUSE, LOAD, RESET, NAME, RESUME], 3.0)


def test_weights_that_only_the_trainer_can_send_are_not_sent_by_another_thread(tmp_path: Path):
    class FromTrainer(DiskTransfer):
        from_any_thread = False

    with vllm_servers(server := VLLMServer()) as controls:
        pushed = VLLMWeights(lambda: dict(enumerate(controls)), FromTrainer(tmp_path), in_flight=True)
        pushed.push(weights(3.0), 1)
        pushed.lost(0)
        pushed.restore(0)  # it has them, by its own word
        server.label = "default"
        pushed.lost(0)
        with pytest.raises(ReplicaError, match="pushed to it again before the next step"):
            pushed.restore(0)
        pushed.ensure(1)
        assert pushed.runs(0)


def adapter_transfer(tmp_path: Path, **options) -> AdapterTransfer:
    """Its base model has the weight 2."""
    from safetensors.torch import save_file

    (tmp_path / "base").mkdir()
    save_file(dict(weights(2.0)), tmp_path / "base" / "model.safetensors")
    return AdapterTransfer(tmp_path / "w", base=tmp_path / "base", save=lambda path: (path / "adapter").touch() or None, **options)


TIED = TiedHead("head", "w")


def test_a_tied_head_travels_under_its_own_name_too(tmp_path: Path):
    with vllm_servers(server := VLLMServer()) as controls:
        VLLMWeights(lambda: dict(enumerate(controls)), DiskTransfer(tmp_path, tied=TIED), in_flight=False).push(weights(3.0), 1)
        assert server.loaded == {"w": 3.0, "head": 3.0}
    with vllm_servers(server := VLLMServer(takes_adapters=True)) as controls:
        pushed = VLLMWeights(lambda: dict(enumerate(controls)), adapter_transfer(tmp_path, tied=TIED), in_flight=False)
        for version in range(2):
            pushed.push(weights(3.0), version)
        pushed.lost(0)
        server.label = "default"
        pushed.ensure(2)
        assert server.loaded == {"w": 2.0, "head": 2.0}
        pushed.close()
        assert not (tmp_path / "w").exists()


def test_an_adapter_travels_alone_after_the_base_model_once(tmp_path: Path):
    with vllm_servers(server := VLLMServer(takes_adapters=True)) as controls:
        pushed = VLLMWeights(lambda: dict(enumerate(controls)), adapter_transfer(tmp_path), in_flight=False)
        pushed.push(weights(3.0), 1)
        assert server.told() == [PAUSE, LOAD, ADAPTER, RESET, NAME, RESUME]
        first = server.adapters[pushed.adapter or ""]
        pushed.push(weights(4.0), 2)
        assert server.told() == [PAUSE, ADAPTER, RESET, NAME, RESUME]
        assert (server.weight, server.adapters[pushed.adapter or ""] != first) == (2.0, True)
        server.stop()
        server.start()
        pushed.ensure(2)
        assert (server.told(), server.weight) == ([PAUSE, LOAD, ADAPTER, RESET, NAME, RESUME], 2.0)


def test_a_server_is_asked_whether_it_takes_adapters(tmp_path: Path):
    absent = str(tmp_path / "absent")
    with vllm_servers(VLLMServer(takes_adapters=True), VLLMServer(), gone := VLLMServer()) as (takes, refuses, unreachable):
        assert takes.takes_adapters("x", absent) is True
        assert refuses.takes_adapters("x", absent) is False
        gone.stop()
        with pytest.raises(ReplicaError):
            unreachable.takes_adapters("x", absent)


@pytest.mark.parametrize("kind", ["nccl", "ipc"])
def test_tensors_are_not_sent_from_a_cpu(kind):
    with pytest.raises(ConfigError, match=f"transfer={kind} sends from a GPU, and policy.device=cpu; set"):
        EngineTransfer(kind, device=torch.device("cpu"), from_any_thread=True)


def test_trainer_and_server_meet_at_the_address_from_which_the_server_is_reached():
    with vllm_servers(VLLMServer()) as (control,):
        address, port = meeting_point(control.url)
    assert (address, 0 < port < 65536) == ("127.0.0.1", True)
    with pytest.raises(ReplicaError, match="cannot be reached"):
        meeting_point(f"http://127.0.0.1:{free_port()}")
