"""Requests that wait for their siblings: /verify of a group is answered when the last of its rollouts has come."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from gym_bridge.resource_servers.base import VerificationFailed


@dataclass(slots=True)
class _Member:
    text: str
    judged: asyncio.Future["asyncio.Task[list[float]]"] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Siblings:
    """Groups of `size` rollouts, each waiting at most `timeout_s` for the others."""

    def __init__(self, *, size: int, timeout_s: float):
        self._size, self._timeout_s = size, timeout_s
        self._waiting: dict[Hashable, dict[Hashable, _Member]] = {}

    async def score(
        self, group: Hashable, rollout: Hashable, text: str, judge: Callable[[tuple[str, ...]], Awaitable[list[float]]]
    ) -> float:
        """The score of `text` among its siblings; `judge` is called once for the whole group.

        A rollout that comes again takes the place of its earlier request. Raises VerificationFailed for a group that does not
        become whole in time, and what `judge` raises for all its members.
        """
        members = self._waiting.setdefault(group, {})
        if (earlier := members.pop(rollout, None)) is not None:
            earlier.judged.set_exception(VerificationFailed("the same rollout was sent again"))
        member = members[rollout] = _Member(text)
        if len(members) == self._size:
            del self._waiting[group]
            judging = asyncio.ensure_future(judge(tuple(one.text for one in members.values())))
            for one in members.values():
                one.judged.set_result(judging)  # pyright: ignore[reportArgumentType]
        try:
            async with asyncio.timeout(self._timeout_s):
                judging = await member.judged
        except TimeoutError:
            raise VerificationFailed(
                f"{len(members)} of {self._size} rollouts of the group came within {self._timeout_s:g} s"
            ) from None
        finally:
            if members.get(rollout) is member and self._waiting.get(group) is members:
                del members[rollout]
                if not members:
                    del self._waiting[group]
        return (await asyncio.shield(judging))[list(members).index(rollout)]
