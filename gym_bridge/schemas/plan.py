"""What a training will need, worked out before it starts. Imports no torch."""

from dataclasses import dataclass

from pydantic import Field, PositiveFloat, PositiveInt

from gym_bridge.config import StrictModel


class PlanSettings(StrictModel):
    """`gym-bridge plan`."""

    num_processes: PositiveInt | None = None
    """Processes that train. Left out: cluster.policy.count with cluster.kind=ray, else 1."""
    memory_gib: PositiveFloat | None = None
    """Memory of each process's device, in GiB, to tell whether it suffices. Left out, on a CPU: that of this machine."""
    gpu: str | None = None
    """Name of the GPU, such as H100 or A100, with policy.device=cuda; left out: the one of this machine."""
    mfu: float | None = Field(default=None, gt=0, le=1)
    """Share of the GPU's peak FLOP/s that a step reaches: `mfu` of metrics.jsonl. Without it the time on a GPU is unknown."""
    tokens_per_step: PositiveInt | None = None
    """Packed tokens of a step over all processes. Left out: those of the data, or at most those that rollouts can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Of one process, in GiB where nothing else is said."""

    num_processes: int
    memory_gib: dict[str, float]
    """By part; they are not all there at the same time."""
    peak_gib: float
    """Of tensors, in a step, or in sampling where that is more."""
    resident_gib: float | None
    """On a CPU about what the process then holds, with Python and what the allocator cannot use again; None on a GPU."""
    available_gib: float | None
    num_parameters: int
    num_parameters_here: int
    """Those whose masters and moments one process holds."""
    tokens_per_s: float | None
    """Packed tokens over all processes, without sampling; None: unknown."""
    sampled_tokens_per_s: float | None
    """In process; None: unknown, or nothing is sampled there."""
    tokens_per_step: int | None
    num_steps: int | None
    step_s: float | None
    total_s: float | None
    notes: tuple[str, ...]
    """What the figures leave out."""

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices; None: nobody said how much there is."""
        return None if self.available_gib is None else (self.resident_gib or self.peak_gib) <= self.available_gib
