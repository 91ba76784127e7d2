import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.launched import VARIABLES, Launched, check_offload, launched, num_shares
from gym_bridge.schemas.settings import PolicySettings

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    def given(values):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return given


def test_torchruns_variables_tell_the_place_among_all_processes(environment):
    environment(TORCHRUN)
    assert launched() == Launched(index=3, size=8, local_index=1)
    assert [num_shares(PolicySettings(tensor_parallel_size=size)) for size in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(ConfigError, match=r"policy.tensor_parallel_size=3: this training has 8 processes; start it with torchrun"):
        num_shares(PolicySettings(tensor_parallel_size=3))
    environment({**TORCHRUN, "RANK": "0"})
    assert [one.leads for one in (launched(), Launched(index=3, size=8, local_index=1))] == [True, False]


@pytest.mark.parametrize("missing", VARIABLES)
def test_without_all_of_them_the_process_is_alone(environment, missing):
    environment({name: value for name, value in TORCHRUN.items() if name != missing})
    assert launched() is None
    assert num_shares(PolicySettings()) == 1
    with pytest.raises(ConfigError, match=r"policy.tensor_parallel_size=2: this training has 1 process; start it with torchrun"):
        num_shares(PolicySettings(tensor_parallel_size=2))


def test_processes_that_share_layers_and_tokens_count_once_for_both(environment):
    environment(TORCHRUN)
    assert num_shares(PolicySettings(tensor_parallel_size=2, context_parallel_size=4)) == 1
    both = r"policy.tensor_parallel_size=2 with policy.context_parallel_size=3: this training has 8 processes"
    with pytest.raises(ConfigError, match=both):
        num_shares(PolicySettings(tensor_parallel_size=2, context_parallel_size=3))


def test_weights_lie_in_main_memory_only_where_a_gpu_computes_in_shards():
    check_offload(PolicySettings(cpu_offload=True, device="cuda"), in_shards=True)
    check_offload(PolicySettings(), in_shards=False)
    with pytest.raises(ConfigError, match=r"policy.cpu_offload=true has no effect with policy.device=cpu"):
        check_offload(PolicySettings(cpu_offload=True), in_shards=True)
    with pytest.raises(ConfigError, match=r"policy.cpu_offload=true: weights in shards alone .* torchrun --nproc-per-node 1"):
        check_offload(PolicySettings(cpu_offload=True, device="cuda"), in_shards=False)
