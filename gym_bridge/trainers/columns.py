"""What the policy, its reference, a teacher and a value model say of a batch's tokens before its first update. T = tokens of a
sequence."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from torch import Tensor

from gym_bridge.policy.frozen_model import Teacher
from gym_bridge.policy.reference import placed
from gym_bridge.schemas.seams import Policy, ValuedPolicy
from gym_bridge.schemas.settings import GRPOSettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.trainers.experience import Experience, ExperienceGroup

Say = Callable[[Sequence[TrainingSequence]], list[Tensor]]
"""For each sequence what a model says of its trained tokens [n]."""
TEACHER = "teacher"


class Columns:
    """Fills the columns that the settings need, over all sequences of a batch at once, and no others.

    old_logprobs with algorithm.old_logprobs=trainer, ref_logprobs with algorithm.beta, the teacher's where there is one, and
    old_values where the policy has a value model.
    """

    def __init__(self, policy: Policy, settings: GRPOSettings, teacher: Teacher | None = None):
        algorithm = settings.algorithm
        says: dict[str, Say | None] = {
            "old_logprobs": policy.logprobs if algorithm.old_logprobs == "trainer" else None,
            "ref_logprobs": policy.reference_logprobs if algorithm.beta > 0 else None,
            TEACHER: teacher.logprobs if teacher is not None else None,
            "old_values": policy.values if isinstance(policy, ValuedPolicy) else None,
        }
        self._says = {name: say for name, say in says.items() if say is not None}
        self._seconds: dict[str, float] = {}

    def fill(self, groups: Sequence[ExperienceGroup]) -> list[ExperienceGroup]:
        """The groups with the columns, each [T] float32 with NaN outside of the trained tokens. Raises PolicyError."""
        sequences = [one for group in groups for experience in group for one in experience.sequences]
        columns = {name: self._column(name, sequences) for name in self._says} if sequences else {}
        found = ({name: column[index] for name, column in columns.items()} for index in range(len(sequences)))
        return [
            tuple(_filled(experience, list(islice(found, len(experience.sequences)))) for experience in group) for group in groups
        ]

    def metrics(self) -> dict[str, float]:
        """Seconds spent on each column since they were last asked for, such as `ref_logprobs_s`, and on all as `columns_s`."""
        found = {f"{name}_s": seconds for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return {"columns_s": sum(found.values()), **found} if found else {}

    def _column(self, name: str, sequences: Sequence[TrainingSequence]) -> list[np.ndarray]:
        started = time.perf_counter()
        said = self._says[name](sequences)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started
        return [placed(one, values) for one, values in zip(sequences, said, strict=True)]


def _filled(experience: Experience, columns: Sequence[Mapping[str, np.ndarray]]) -> Experience:
    sequences = tuple(
        replace(one, **{name: column for name, column in found.items() if name != TEACHER})
        for one, found in zip(experience.sequences, columns, strict=True)
    )
    teacher = tuple(found[TEACHER] for found in columns if TEACHER in found)
    return replace(experience, sequences=sequences, teacher_logprobs=teacher)
