"""What the policy's endpoint sampled, kept until it is taken: to be extended by the next call, and to train on."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock

import numpy as np

from gym_bridge.schemas.tokens import TurnTokens

KEEP_S = 3600.0
MAX_TOKENS = 2**25
"""Tokens of all calls that are kept; those that a call shares with the one that it extends count once. About 8 bytes each."""


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One call. It holds only the tokens that are new since its `parent`, the call that it extends."""

    history: bytes
    """Digest of the conversation up to its answer."""
    rollout: str | None
    parent: "Call | None"
    new_prompt_ids: np.ndarray  # int32, after the parent's tokens
    completion_ids: np.ndarray  # int32
    logprobs: np.ndarray  # float64, of the completion
    policy_version: int
    ids_digest: bytes
    since: float

    @property
    def num_tokens(self) -> int:
        """Tokens that it holds itself."""
        return len(self.new_prompt_ids) + len(self.completion_ids)

    def prompt_ids(self) -> np.ndarray:
        """The whole prompt."""
        parts, call = [self.new_prompt_ids], self.parent
        while call is not None:
            parts += [call.completion_ids, call.new_prompt_ids]
            call = call.parent
        return np.concatenate(parts[::-1])

    def tokens(self, *, starts_segment: bool) -> TurnTokens:
        """As the turn of a trajectory."""
        return TurnTokens(
            prompt_ids=tuple(self.prompt_ids().tolist()),
            completion_ids=tuple(self.completion_ids.tolist()),
            logprobs=tuple(self.logprobs.tolist()),
            policy_version=self.policy_version,
            starts_segment=starts_segment,
        )


@dataclass(slots=True)
class _Capture:
    """The calls of a rollout."""

    since: float
    calls: list[Call] = field(default_factory=list)
    num_begun: int = 0
    overflowed: bool = False
    lost: bool = False
    """Calls of it are no longer kept."""


class CallRecord:
    """Calls by their tokens, and by their rollout. Safe to use from several threads.

    A call is kept until its rollout is dropped, for `keep_s` seconds, or until `max_tokens` newer ones are kept: what plays
    without naming rollouts cannot fill the memory.
    """

    def __init__(self, *, keep_s: float = KEEP_S, max_tokens: int = MAX_TOKENS):
        self.keep_s, self.max_tokens = keep_s, max_tokens
        self.num_calls = 0
        """Calls that were ever answered."""
        self._num_tokens = 0
        self._by_age: OrderedDict[int, Call] = OrderedDict()
        self._by_ids: dict[bytes, list[Call]] = {}
        self._captures: OrderedDict[str, _Capture] = OrderedDict()
        self._lock = Lock()

    def begin(self, rollout: str) -> int:
        """How many calls of the rollout were begun before this one."""
        with self._lock:
            capture = self._capture(rollout)
            capture.num_begun += 1
            return capture.num_begun - 1

    def overflow(self, rollout: str) -> None:
        """Note that a prompt of the rollout left no room in the model's context."""
        with self._lock:
            self._capture(rollout).overflowed = True

    def add(self, tokens: TurnTokens, *, history: bytes, rollout: str | None, parent: Call | None) -> None:
        """Keep a call; `parent` is the one whose tokens its prompt begins with, where it extends one."""
        num_known = 0 if parent is None else len(parent.prompt_ids()) + len(parent.completion_ids)
        call = Call(
            history=history,
            rollout=rollout,
            parent=parent,
            new_prompt_ids=np.array(tokens.prompt_ids[num_known:], dtype=np.int32),
            completion_ids=np.array(tokens.completion_ids, dtype=np.int32),
            logprobs=np.array(tokens.logprobs, dtype=np.float64),
            policy_version=tokens.policy_version,
            ids_digest=digest_ids(tokens.all_ids),
            since=time.monotonic(),
        )
        with self._lock:
            self.num_calls += 1
            self._num_tokens += call.num_tokens
            self._by_age[id(call)] = call
            self._by_ids.setdefault(call.ids_digest, []).append(call)
            if rollout is not None:
                self._capture(rollout).calls.append(call)
            self._forget_old(call.since)

    def find(self, ids: Sequence[int], *, rollout: str | None = None, logprobs: Sequence[float] = ()) -> Call | None:
        """The call with this prompt and completion; of several that of the rollout, then of these log-probs, then the last one."""
        told = list(logprobs)
        with self._lock:
            found = self._by_ids.get(digest_ids(ids), ())
            return max(reversed(found), key=lambda one: (one.rollout == rollout, one.logprobs.tolist() == told)) if found else None

    def with_history(self, history: bytes, *, rollout: str) -> Call | None:
        """The rollout's last call that ended with this conversation."""
        with self._lock:
            capture = self._captures.get(rollout)
            calls = capture.calls if capture is not None else ()
            return next((call for call in reversed(calls) if call.history == history), None)

    def turns(self, rollout: str) -> tuple[TurnTokens, ...]:
        """All calls of a rollout, none of one unknown; the calls of a segment follow each other, segments in order of their first.

        None as well where calls of it are no longer kept: a part of a rollout is not that rollout.
        """
        with self._lock:
            capture = self._captures.get(rollout)
            calls = list(capture.calls) if capture is not None and not capture.lost else []
        after: dict[int, Call] = {}
        heads: list[Call] = []
        known = set(map(id, calls))
        for call in calls:
            if call.parent is not None and id(call.parent) in known and id(call.parent) not in after:
                after[id(call.parent)] = call
            else:
                heads.append(call)
        turns: list[TurnTokens] = []
        for head in heads:
            call: Call | None = head
            while call is not None:
                turns.append(call.tokens(starts_segment=call is head))
                call = after.get(id(call))
        return tuple(turns)

    def overflowed(self, rollout: str) -> bool:
        """Whether a prompt of the rollout left no room in the model's context."""
        with self._lock:
            capture = self._captures.get(rollout)
            return capture is not None and capture.overflowed

    def drop(self, rollout: str) -> None:
        """Keep nothing of a rollout any longer."""
        with self._lock:
            capture = self._captures.pop(rollout, None)
            for call in capture.calls if capture is not None else ():
                self._forget(call)

    def _capture(self, rollout: str) -> _Capture:
        capture = self._captures.get(rollout)
        if capture is None:
            capture = self._captures[rollout] = _Capture(since=time.monotonic())
        capture.since = time.monotonic()
        self._captures.move_to_end(rollout)
        return capture

    def _forget_old(self, now: float) -> None:
        while self._by_age:
            oldest = next(iter(self._by_age.values()))
            if now - oldest.since <= self.keep_s and self._num_tokens <= self.max_tokens:
                break
            self._forget(oldest)
            capture = self._captures.get(oldest.rollout) if oldest.rollout is not None else None
            if capture is not None:
                capture.lost = True
                capture.calls = [call for call in capture.calls if call is not oldest]
        while self._captures and now - next(iter(self._captures.values())).since > self.keep_s:
            _, capture = self._captures.popitem(last=False)
            for call in capture.calls:
                self._forget(call)

    def _forget(self, call: Call) -> None:
        if self._by_age.pop(id(call), None) is None:
            return
        self._num_tokens -= call.num_tokens
        left = [one for one in self._by_ids[call.ids_digest] if one is not call]
        if left:
            self._by_ids[call.ids_digest] = left
        else:
            del self._by_ids[call.ids_digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyServer:
    """The policy's endpoint while it is served: where it answers, and what it sampled."""

    url: str
    """Without the /v1 of its routes."""
    calls: CallRecord

    @property
    def base_url(self) -> str:
        """What an OpenAI client, or NeMo Gym as its policy_base_url, is told."""
        return f"{self.url}/v1"


def digest_ids(ids: Sequence[int]) -> bytes:
    """What tells one sequence of token ids from another. Raises OverflowError for an id beyond 32 bits."""
    return blake2b(np.array(ids, dtype=np.int32).tobytes(), digest_size=16).digest()
