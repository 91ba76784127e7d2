"""Training samples from the policy as it is: what a ratio is taken of must be what was drawn from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.sampled_params import distorting, sampling_params, with_extra_body
from gym_bridge.schemas.seams import Sampler
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams


class WholeDistribution:
    """A sampler that refuses to sample from anything but the policy's own distribution."""

    def __init__(self, sampler: Sampler):
        self.sampler, self._greedy_passes = sampler, False

    @contextmanager
    def letting_greedy_pass(self) -> Iterator[None]:
        """Temperature 0 passes as long as the block lasts, for held-out tasks."""
        self._greedy_passes = True
        try:
            yield
        finally:
            self._greedy_passes = False

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """As the sampler's. Raises DataError for a temperature other than 1, for top_p and for top_k."""
        is_greedy = self._greedy_passes and params.temperature == 0
        if not is_greedy and (reason := _distorted(params)):
            raise DataError(reason)
        return await self.sampler.sample(prompt_ids, params, key=key)


def check_whole_distribution(params: Mapping[str, Any]) -> None:
    """Raise DataError where a task's Responses parameters would have training sample from another distribution than the policy."""
    if reason := _distorted(sampling_params(with_extra_body(params), max_tokens=1, stop_token_ids=())):
        raise DataError(reason)


def _distorted(params: SamplingParams) -> str | None:
    found = distorting(asdict(params))
    if found is None:
        return None
    name, value = found
    return (
        f"{name}={value:g} draws from another distribution than the policy, whose ratios training takes; "
        f"leave {name} out of the task's responses_create_params"
    )
