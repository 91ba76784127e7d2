"""The sampler's weights, brought up to the policy's version when somebody is about to sample."""

import time
from collections.abc import Callable

from gym_bridge.schemas.seams import Policy, WeightSync


class FreshWeights:
    """Pushes each version at most once. `settle` waits for the rollouts that must not see other weights."""

    def __init__(self, policy: Policy, sync: WeightSync):
        self._policy, self._sync = policy, sync
        self.settle: Callable[[], None] = lambda: None
        self._pushed: int | None = None
        self._seconds = 0.0

    def renew(self) -> None:
        """From the return of this on, what is sampled is sampled by the policy's version. Raises as the push does."""
        version = self._policy.version
        if version == self._pushed:
            return
        self.settle()
        started = time.perf_counter()
        self._sync.push(self._policy.weights(), version)
        self._pushed = version
        self._seconds += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """Seconds that pushes took since they were last asked for."""
        seconds, self._seconds = self._seconds, 0.0
        return {"push_s": seconds}
