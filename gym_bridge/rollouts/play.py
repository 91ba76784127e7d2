"""What one attempt at a rollout has come to so far, and what it does now."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gym_bridge.schemas.rollouts import Item, Row, StopReason
from gym_bridge.schemas.seams import Turn, Usage
from gym_bridge.schemas.tokens import TurnTokens


@dataclass(slots=True, kw_only=True)
class Play:
    """Filled as an attempt goes on, so that a failure can tell how far it came."""

    attempt: int = 0
    output: list[Item] = field(default_factory=list)
    turns: list[TurnTokens] = field(default_factory=list)
    last_items: list[int] = field(default_factory=list)
    """For each model call the index in `output` of its last item."""
    num_turns: int = 0
    num_tool_calls: int = 0
    num_tool_errors: int = 0
    turn_rewards: list[float] = field(default_factory=list)
    """What each model call earned, where the environment tells it."""
    usage: Usage = field(default_factory=Usage)
    incomplete_reason: str | None = None
    model: str = ""
    timings_s: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: seed, model, tools, verify, ..."""
    waits_s: list[tuple[str, float]] = field(default_factory=list)
    """The same one by one, in their order: each model call, each round of tool calls."""
    as_played: Row = field(default_factory=dict)
    """`responses_create_params` and `response` once all turns are played: what a failed verification can be repeated with."""
    stage: str = "start"
    """What the attempt waits for, for the watchdog."""
    since: float = field(default_factory=time.monotonic)
    """When it began to, on the monotonic clock."""

    @contextmanager
    def waiting_for(self, stage: str, *, counted_as: str | None = None) -> Iterator[None]:
        """The block waits for `stage`; its seconds go to `timings_s` and `waits_s` under that name, or under `counted_as`."""
        started = self.since = time.monotonic()
        self.stage = stage
        name = counted_as or stage
        try:
            yield
        finally:
            self.since = time.monotonic()
            seconds = self.since - started
            self.timings_s[name] = self.timings_s.get(name, 0.0) + seconds
            self.waits_s.append((name, seconds))

    def add(self, turn: Turn) -> None:
        """Take what a model call gave."""
        self.output += turn.items
        self.last_items.append(len(self.output) - 1)
        self.num_turns += 1
        self.usage += turn.usage
        self.incomplete_reason = turn.incomplete_reason
        self.model = turn.model
        if turn.tokens is not None:
            self.turns.append(turn.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An attempt that reached its reward."""

    row: Row
    """The task's row with what the environment added: `responses_create_params` as played, `response`, `reward`, its own fields."""
    stop: StopReason
