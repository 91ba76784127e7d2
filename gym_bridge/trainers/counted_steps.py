"""A step source that is somewhere in a row of steps whose length is known."""

from collections.abc import Mapping
from typing import Any


class CountedSteps:
    """Counts the steps taken, which is all that such a `StepSource` has to keep; its `next` is the subclass's."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self._step = 0

    def stepped(self, version: int) -> None:
        """The step was taken."""
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Steps taken."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last step of `state`."""
        self._step = int(state["step"])

    def close(self) -> None:
        """Nothing runs in the background."""
