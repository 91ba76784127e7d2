"""Training samples from the policy as it is: what a ratio is taken of must be what was drawn from."""

from collections.abc import Mapping, Sequence
from typing import Any

from gym_bridge.errors import DataError
from gym_bridge.rollouts.models.sampled_params import sampling_params, with_extra_body
from gym_bridge.schemas.seams import Sampler
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams


class WholeDistribution:
    """A sampler that refuses to sample from anything but the policy's own distribution; `or_greedy` lets temperature 0 pass, for
    agents that play held-out tasks as well."""

    def __init__(self, sampler: Sampler, *, or_greedy: bool = False):
        self.sampler, self._or_greedy = sampler, or_greedy

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, *, key: SampleKey) -> Completion:
        """As the sampler's. Raises DataError for a temperature other than 1, for top_p and for top_k."""
        is_greedy = self._or_greedy and params.temperature == 0
        if not is_greedy and (reason := _distorted(params)):
            raise DataError(reason)
        return await self.sampler.sample(prompt_ids, params, key=key)


def check_whole_distribution(params: Mapping[str, Any]) -> None:
    """Raise DataError where a task's Responses parameters would have training sample from another distribution than the policy."""
    if reason := _distorted(sampling_params(with_extra_body(params), max_tokens=1, stop_token_ids=())):
        raise DataError(reason)


def _distorted(params: SamplingParams) -> str | None:
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    for name, value in neutral.items():
        if getattr(params, name) != value:
            return (
                f"{name}={getattr(params, name):g} draws from another distribution than the policy, whose ratios training takes; "
                f"leave {name} out of the task's responses_create_params"
            )
    return None
