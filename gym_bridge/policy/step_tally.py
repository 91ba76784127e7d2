"""What the microbatches of a step came to, in one process and over all."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gym_bridge.schemas.seams import Loss


@dataclass(slots=True)
class StepTally:
    """Numbers of the microbatches that one process computed."""

    num_tokens: int
    """Trained tokens of the whole step."""
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "num_packed_tokens": 0})
    largest: dict[str, float] = field(default_factory=dict)
    smallest: dict[str, float] = field(default_factory=dict)

    def add(self, value: float, loss: Loss, entropies: Tensor | None, *, packed_tokens: int) -> None:
        """Count a microbatch, whose loss is `value`, with the entropies [N] of its trained tokens."""
        parts = {} if entropies is None else {"entropy": entropies.detach().sum().item() / max(1, self.num_tokens)}
        for name, one in {"loss": value, "num_packed_tokens": packed_tokens, **loss.metrics, **parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + one
        self.largest |= {name: max(one, self.largest.get(name, one)) for name, one in loss.largest.items()}
        self.smallest |= {name: min(one, self.smallest.get(name, one)) for name, one in loss.smallest.items()}


def merged(tallies: Sequence[StepTally]) -> dict[str, float]:
    """The metrics of the step that these processes took together."""
    metrics: dict[str, float] = {"loss": 0.0, "num_trained_tokens": tallies[0].num_tokens, "num_packed_tokens": 0}
    for one in tallies:
        for name, value in one.sums.items():
            metrics[name] = metrics.get(name, 0.0) + value
    for one in tallies:
        metrics |= {name: max(value, metrics.get(name, value)) for name, value in one.largest.items()}
        metrics |= {name: min(value, metrics.get(name, value)) for name, value in one.smallest.items()}
    return metrics
