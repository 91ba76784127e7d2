"""How an error inside a rollout becomes a typed failure."""

from gym_bridge.schemas.rollouts import Failure, FailureType


class RolloutError(Exception):
    """Ends one attempt at a rollout; the collector makes data of it."""

    def __init__(self, type: FailureType, message: str, *, status: int | None = None, gone: str | None = None):
        self.failure = Failure(type=type, message=message, status=status)
        self.gone = gone
        """URL to which no connection could be made at all: then the next rollout would fail as well."""
        super().__init__(message)
