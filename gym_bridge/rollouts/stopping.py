"""What ends a collection before all its rollouts are played: budgets that the user set, and failures that will not stop."""

from dataclasses import dataclass

from gym_bridge.rollouts.attempts import CALLED_OFF
from gym_bridge.schemas.rollouts import Rollout

LEAST_FAILURES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """When to stop. None switches a rule off; the last one cannot be."""

    max_failure_rate: float | None = None
    """Share of attempts that failed, once `LEAST_FAILURES` have ended."""
    max_consecutive_failures: int | None = None
    token_budget: int | None = None
    """Tokens of all model calls, input and output."""
    cost_budget: float | None = None
    input_price: float = 0.0
    """Of a million tokens, in the unit of `cost_budget`."""
    output_price: float = 0.0
    hopeless_after: int = LEAST_FAILURES
    """Failures without one success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why no further rollout is started."""

    message: str
    failed: bool
    """True when something is wrong; False when a budget is spent, and what is in flight may end."""


@dataclass(slots=True)
class StopWatch:
    """Sees every attempt and says when to stop."""

    rules: StopRules
    num_ended: int = 0
    num_failed: int = 0
    num_consecutive: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    last_failure: str = ""

    @property
    def cost(self) -> float:
        """What the tokens so far cost."""
        return (self.input_tokens * self.rules.input_price + self.output_tokens * self.rules.output_price) / 1e6

    def see(self, rollout: Rollout) -> Stop | None:
        """Take one attempt. Of one that was called off the tokens count alone: it tells of nothing that its sibling does not."""
        fields = rollout.row["gym_bridge"]
        self.input_tokens += fields["num_input_tokens"]
        self.output_tokens += fields["num_output_tokens"]
        if rollout.failure == CALLED_OFF:
            return self._spent()
        self.num_ended += 1
        if rollout.failure is None:
            self.num_consecutive = 0
        else:
            self.num_failed += 1
            self.num_consecutive += 1
            self.last_failure = f"{rollout.failure.type}: {rollout.failure.message}"
        return self._failing() or self._spent()

    def _failing(self) -> Stop | None:
        rules, told = self.rules, f"the last one: {self.last_failure}"
        if self.num_failed == self.num_ended >= rules.hopeless_after:
            return Stop(message=f"all {self.num_failed} attempts so far failed; {told}", failed=True)
        if rules.max_consecutive_failures is not None and self.num_consecutive >= rules.max_consecutive_failures:
            return Stop(message=f"{self.num_consecutive} attempts in a row failed; {told}", failed=True)
        rate = self.num_failed / self.num_ended
        if rules.max_failure_rate is not None and self.num_ended >= LEAST_FAILURES and rate > rules.max_failure_rate:
            return Stop(message=f"{rate:.0%} of {self.num_ended} attempts failed; {told}", failed=True)
        return None

    def _spent(self) -> Stop | None:
        rules, tokens = self.rules, self.input_tokens + self.output_tokens
        if rules.token_budget is not None and tokens >= rules.token_budget:
            return Stop(message=f"the token budget of {rules.token_budget} is spent ({tokens} tokens)", failed=False)
        if rules.cost_budget is not None and self.cost >= rules.cost_budget:
            return Stop(message=f"the cost budget of {rules.cost_budget:g} is spent ({self.cost:.4g})", failed=False)
        return None
