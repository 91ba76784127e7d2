"""How far a policy has gone from another one, as a report tells it."""

from collections.abc import Mapping, Sequence

from pydantic import ConfigDict

from gym_bridge.config import StrictModel
from gym_bridge.evaluation.estimates import Estimate, mean_over_tasks
from gym_bridge.evaluation.telling import number_and_interval


class Drift(StrictModel):
    """The divergence from the baseline, at the tokens of a policy's own rollouts."""

    model_config = ConfigDict(ser_json_inf_nan="strings", allow_inf_nan=True)

    kl: Estimate | None = None
    """KL(policy || baseline) in nats a token: the mean over tasks of the mean over the tokens of a task's rollouts."""
    unmeasured: str = ""
    """Why it could not be measured, where it is None."""

    def sentence(self) -> str:
        """The figure with its interval, or why there is none."""
        if self.kl is None:
            return f"KL not measured: {self.unmeasured}"
        return f"KL: {number_and_interval(self.kl, '.4f')} nats a token"


def drift_of(divergences: Mapping[int, Sequence[float]]) -> Drift:
    """The drift of estimates of the divergence at each token, by task; tasks without a token are in no mean."""
    means = [sum(found) / len(found) for found in divergences.values() if found]
    return Drift(kl=mean_over_tasks(means)) if means else Drift(unmeasured="no token was sampled")
