"""Which models cannot share tokens among processes; those that can: tests/policy/test_parallel.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy.context_parallel import check_shareable


def model(**config: Any) -> Any:
    """One of 8 heads and 2 heads of keys."""
    values = {"num_attention_heads": 8, "num_key_value_heads": 2, **config}
    return SimpleNamespace(get_decoder=lambda: SimpleNamespace(config=SimpleNamespace(**values)))


def check(module: Any, *, context: int, tensor: int = 1) -> None:
    check_shareable(module, Path("some/model"), context=context, tensor=tensor)


@pytest.mark.parametrize(("context", "tensor"), [(2, 1), (4, 1), (8, 1), (2, 2), (4, 2)])
def test_heads_of_keys_are_dealt_out_or_repeated(context, tensor):
    check(model(), context=context, tensor=tensor)


@pytest.mark.parametrize(("context", "tensor", "each"), [(3, 1, ""), (16, 1, ""), (8, 2, " in each of 2 processes")])
def test_heads_that_do_not_fit_are_refused(context, tensor, each):
    with pytest.raises(ConfigError, match=rf"policy.context_parallel_size={context}: this model has .* heads of keys{each}, which"):
        check(model(), context=context, tensor=tensor)


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "longrope"}, {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}],
)
def test_positions_that_depend_on_the_longest_one_are_refused(rope):
    with pytest.raises(PolicyError, match=r"some/model: its rope_type .* set policy.context_parallel_size=1"):
        check(model(rope_parameters=rope), context=2)
    check(model(rope_parameters={"rope_type": "yarn", "factor": 4.0}), context=2)
