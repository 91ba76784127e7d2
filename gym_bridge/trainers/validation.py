"""Validation on held-out sequences: the training loss and its metrics, over whole sets, without gradient."""

from collections.abc import Mapping, Sequence

from gym_bridge.policy.packing import plan_microbatches
from gym_bridge.schemas.seams import LossFn, Policy
from gym_bridge.tokens.sample_files import Unit


class Validation:
    """Named sets of held-out units and the loss that is taken on them.

    A set counts as one step: its loss and metrics are normalised by the tokens or sequences of the whole set, however it is cut
    into microbatches. `loss_fn` must depend on nothing but its arguments, or a resumed run gives other numbers.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Unit]],
        loss_fn: LossFn,
        *,
        microbatch_tokens: int,
        share_prefixes: bool,
        num_shares: int = 1,
    ):
        self.loss_fn = loss_fn
        self._sets = {
            name: plan_microbatches(
                sorted(units, key=lambda unit: unit[0].token_ids.tolist()),
                max_tokens=microbatch_tokens,
                share_prefixes=share_prefixes,
                multiple_of=num_shares,
            )
            for name, units in sets.items()
        }

    def run(self, policy: Policy) -> dict[str, float]:
        """`validation/NAME/loss` and `validation/NAME/METRIC` of each set, in the sets' order, the loss first."""
        found: dict[str, float] = {}
        for name, microbatches in self._sets.items():
            metrics = policy.evaluate(microbatches, self.loss_fn)
            found |= {f"validation/{name}/{key}": metrics[key] for key in ("loss", *metrics)}
        return found
