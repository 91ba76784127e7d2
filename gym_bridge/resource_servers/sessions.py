"""Sessions of a resource server: one state a rollout, found again by a signed cookie."""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

StateT = TypeVar("StateT")


class SessionMissing(Exception):  # noqa: N818 - the request lacks a session; nothing of ours went wrong
    """The request carries no cookie of a living session."""

    def __init__(self):
        super().__init__("Session not initialized. Please call seed_session first.")


class Sessions(Generic[StateT]):
    """States by signed token. A session ends `ttl_s` seconds after its last use, or when `limit` younger ones push it out.

    NeMo Gym signs with a secret that can be guessed and names all cookies of a class alike; here both are random for each
    process, so that servers on one host do not overwrite each other's sessions in a client's cookie jar.
    """

    def __init__(
        self,
        *,
        ttl_s: float = 3600.0,
        limit: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
        on_end: Callable[[StateT], None] = lambda state: None,
    ):
        """`on_end` is told of every state that is let go."""
        self._on_end = on_end
        self.cookie_name = f"gym_bridge_{secrets.token_hex(4)}"
        self._secret = secrets.token_bytes(32)
        self._ttl_s, self._limit, self._clock = ttl_s, limit, clock
        self._states: OrderedDict[str, tuple[float, StateT]] = OrderedDict()  # the longest idle first

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, token: str) -> bool:
        return token in self._states

    def open(self, state: StateT) -> str:
        """The token of a new session."""
        self._drop_expired()
        if len(self._states) >= self._limit:
            self._drop_oldest()
        token = self._signed(secrets.token_urlsafe(16))
        self._states[token] = (self._clock(), state)
        return token

    def find(self, token: str) -> StateT:
        """The state of a living session. Raises SessionMissing."""
        self._drop_expired()
        genuine = self._signed(token.partition(".")[0])
        if not hmac.compare_digest(genuine.encode(errors="replace"), token.encode(errors="replace")) or token not in self._states:
            raise SessionMissing
        _, state = self._states.pop(token)
        self._states[token] = (self._clock(), state)
        return state

    def close(self, token: str) -> None:
        """Let a session go. Raises SessionMissing."""
        self.find(token)
        self._on_end(self._states.pop(token)[1])

    def close_all(self) -> None:
        """Let every session go."""
        while self._states:
            self._drop_oldest()

    def _signed(self, session_id: str) -> str:
        return f"{session_id}.{hmac.new(self._secret, session_id.encode(errors='replace'), hashlib.sha256).hexdigest()}"

    def _drop_expired(self) -> None:
        oldest_allowed = self._clock() - self._ttl_s
        while self._states and next(iter(self._states.values()))[0] < oldest_allowed:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, state) = self._states.popitem(last=False)
        self._on_end(state)
