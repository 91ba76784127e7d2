"""How an error inside a rollout becomes a typed failure."""

from typing import Literal

from gym_bridge.rollouts.http import HttpError, Reply, retry_after_s
from gym_bridge.schemas.rollouts import Failure, FailureType

REFUSALS = frozenset({401, 403, 404, 405, 501})
"""Statuses that tell of a wrong address, route or key, and not of the rollout."""


class RolloutError(Exception):
    """Ends one attempt at a rollout; the collector makes data of it."""

    def __init__(
        self,
        type: FailureType,
        message: str,
        *,
        status: int | None = None,
        terminal: bool = False,
        url: str | None = None,
        blocks: Literal["gone", "refused"] | None = None,
        retry_after_s: float | None = None,
    ):
        self.failure = Failure(type=type, message=message, status=status, terminal=terminal)
        self.url = url
        self.blocks = blocks
        """gone: nothing answers at `url`; refused: it turns us away. Every other rollout may fail in the same way."""
        self.retry_after_s = retry_after_s
        """How long the server asks to be left alone."""
        super().__init__(message)


def no_reply(error: HttpError, failure: FailureType, *, url: str, route: str) -> RolloutError:
    """The error for a request to `url`/`route` that got no whole reply."""
    kind = FailureType.TIMEOUT if error.kind == "timeout" else failure
    return RolloutError(kind, f"{route}: {error}", url=url, blocks="gone" if error.kind == "unreachable" else None)


def bad_status(reply: Reply, failure: FailureType, *, url: str, route: str) -> RolloutError:
    """The error for a reply of `url`/`route` with a status of 400 or more."""
    blocks = "refused" if reply.status in REFUSALS else None
    message = f"{route} answered {reply.status}: {reply.short()}"
    return RolloutError(failure, message, status=reply.status, url=url, blocks=blocks, retry_after_s=retry_after_s(reply.headers))
