"""Servers whose verifier is a library's scorer: it runs in worker processes, and sessions hold nothing."""

from importlib.util import find_spec
from typing import ClassVar, Generic, cast

from pydantic import Field

from gym_bridge.config import StrictModel
from gym_bridge.errors import missing_extra
from gym_bridge.resource_servers.base import ResourceServer, TaskT
from gym_bridge.resource_servers.scorer_pool import Scorer, ScorerPool


class ScoringSettings(StrictModel):
    """How answers are scored."""

    deadline_s: float = Field(5.0, gt=0)
    """Seconds after which scoring an answer is given up and its process killed."""
    num_workers: int = Field(2, ge=1)
    """Processes that score."""


class ScoringServer(ResourceServer[TaskT, None], Generic[TaskT]):
    """Opens the scorer that `verify` asks. Raises ConfigError without the library."""

    Settings = ScoringSettings
    stateless = True
    deadline_s = 600.0  # the wait for an idle worker is in it
    library: ClassVar[str]
    """The package that scores, from the `servers` extra."""
    function: ClassVar[str]
    """What a worker calls: `package.module:name`."""

    def __init__(self, settings: StrictModel | None = None, *, shuffle_rewards: bool = False):
        if find_spec(self.library) is None:
            raise missing_extra(type(self).__name__, "servers")
        super().__init__(settings, shuffle_rewards=shuffle_rewards)
        given = cast(ScoringSettings, self.settings)
        self._pool = ScorerPool(self.function, num_workers=given.num_workers, deadline_s=given.deadline_s)
        self.scorer = Scorer(self._pool)

    async def start(self) -> None:
        """Make the workers."""
        await self._pool.start()

    async def stop(self) -> None:
        """End the workers."""
        await self._pool.stop()

    async def seed(self, task: TaskT) -> None:
        """A session holds nothing."""
