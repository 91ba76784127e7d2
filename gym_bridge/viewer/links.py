"""Addresses of pages: on the server of the live page, or within one exported file, where what is not in it has none."""

from collections.abc import Collection, Mapping
from typing import Protocol
from urllib.parse import urlencode


class Links(Protocol):
    """Where a page is; None where there is none."""

    live: bool
    """True where pages are made as they are asked for."""

    def runs(self, runs: Collection[int]) -> str | None:
        """The curves of runs."""
        ...

    def rollouts(self, file: int, query: Mapping[str, object] | None = None) -> str | None:
        """The list of a file's rollouts."""
        ...

    def groups(self, file: int, query: Mapping[str, object] | None = None) -> str | None:
        """The list of a file's groups."""
        ...

    def group(self, file: int, place: str) -> str | None:
        """The group of the rollout at a place."""
        ...

    def rollout(self, file: int, place: str, query: Mapping[str, object] | None = None) -> str | None:
        """The conversation of a rollout."""
        ...

    def tokens(self, file: int, place: str, query: Mapping[str, object] | None = None) -> str | None:
        """The tokens of a rollout."""
        ...

    def failures(self, file: int) -> str | None:
        """How a file's rollouts ended."""
        ...


class LiveLinks:
    """Addresses on the server."""

    live = True

    def runs(self, runs: Collection[int]) -> str:
        """As `Links.runs`."""
        return f"/runs?{urlencode([('run', one) for one in sorted(runs)])}"

    def rollouts(self, file: int, query: Mapping[str, object] | None = None) -> str:
        """As `Links.rollouts`."""
        return _address(f"/files/{file}", query)

    def groups(self, file: int, query: Mapping[str, object] | None = None) -> str:
        """As `Links.groups`."""
        return _address(f"/files/{file}/groups", query)

    def group(self, file: int, place: str) -> str:
        """As `Links.group`."""
        return f"/files/{file}/groups/{place}"

    def rollout(self, file: int, place: str, query: Mapping[str, object] | None = None) -> str:
        """As `Links.rollout`."""
        return _address(f"/files/{file}/rollouts/{place}", query)

    def tokens(self, file: int, place: str, query: Mapping[str, object] | None = None) -> str:
        """As `Links.tokens`."""
        return _address(f"/files/{file}/rollouts/{place}/tokens", query)

    def failures(self, file: int) -> str:
        """As `Links.failures`."""
        return f"/files/{file}/failures"


class PageLinks:
    """Places within one exported page, which holds some of the rollouts, whole, and all else in short."""

    live = False

    def __init__(self, rollouts: Collection[tuple[int, str]]):
        """`rollouts` are those that are in it, by file and place."""
        self._rollouts = frozenset(rollouts)

    def runs(self, runs: Collection[int]) -> str | None:
        """As `Links.runs`."""
        return f"#run-{min(runs)}"

    def rollouts(self, file: int, query: Mapping[str, object] | None = None) -> str | None:
        """As `Links.rollouts`; a choice of them has no place."""
        return None if query else f"#file-{file}"

    def groups(self, file: int, query: Mapping[str, object] | None = None) -> str | None:
        """As `Links.groups`."""
        return None if query else f"#groups-{file}"

    def group(self, file: int, place: str) -> None:
        """Groups have no page of their own."""

    def rollout(self, file: int, place: str, query: Mapping[str, object] | None = None) -> str | None:
        """As `Links.rollout`."""
        return f"#rollout-{file}-{place}" if (file, place) in self._rollouts else None

    def tokens(self, file: int, place: str, query: Mapping[str, object] | None = None) -> None:
        """Tokens are not in it."""

    def failures(self, file: int) -> str | None:
        """As `Links.failures`."""
        return f"#failures-{file}"


def _address(path: str, query: Mapping[str, object] | None) -> str:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path
