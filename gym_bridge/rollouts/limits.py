"""When a rollout is stopped, and the one order in which that is checked."""

from dataclasses import dataclass

import orjson

from gym_bridge.rollouts.play import Play
from gym_bridge.schemas.rollouts import Item, StopReason
from gym_bridge.schemas.seams import Turn

OWN_TO_A_TURN = frozenset({"id", "call_id", "status", "prompt_token_ids", "generation_token_ids", "generation_log_probs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one rollout. What they stop is verified as it stands, and marked truncated.

    After each model call, in this order:

    1. `max_output_tokens`: the endpoint cut the call off;
    2. answered: it gave a message and called no tool;
    3. `max_total_tokens`;
    4. `max_tool_calls`: its calls are not made when they would pass the limit;

    then its tools are called, and

    5. `max_repeated_turns`;
    6. `max_turns`.

    A call that gave reasoning alone is followed by another one; it counts as a turn.
    """

    max_turns: int = 8
    """Model calls."""
    max_tool_calls: int | None = None
    max_total_tokens: int | None = None
    """Tokens of the conversation: input and output of the last model call."""
    max_repeated_turns: int = 4
    """Turns in a row that say, call and get the same."""

    def after_call(self, turn: Turn, calls: list[Item], play: Play, *, answers: bool = True) -> StopReason | None:
        """Whether the rollout ends before the tools of `turn` are called; `answers`: a message without calls ends it."""
        if turn.incomplete_reason:
            return StopReason.CONTENT_FILTER if turn.incomplete_reason == "content_filter" else StopReason.MAX_OUTPUT_TOKENS
        if answers and not calls and any(item.get("type") == "message" for item in turn.items):
            return StopReason.ANSWERED
        if self.max_total_tokens is not None and turn.usage.input_tokens + turn.usage.output_tokens >= self.max_total_tokens:
            return StopReason.MAX_TOTAL_TOKENS
        if self.max_tool_calls is not None and play.num_tool_calls + len(calls) > self.max_tool_calls:
            return StopReason.MAX_TOOL_CALLS
        return None

    def after_tools(self, play: Play, *, num_repeated: int) -> StopReason | None:
        """Whether the rollout ends before the model is asked again; `num_repeated` turns in a row were alike."""
        if num_repeated >= self.max_repeated_turns:
            return StopReason.REPEATED_TURN
        if play.num_turns >= self.max_turns:
            return StopReason.MAX_TURNS
        return None


class RepeatedTurns:
    """Counts the turns in a row that are alike but for their ids."""

    def __init__(self) -> None:
        self.count = 0
        self._last = b""

    def see(self, items: list[Item]) -> int:
        """Take the items of one turn, tool outputs included; how many turns in a row were like it, itself included."""
        said = orjson.dumps([{name: value for name, value in item.items() if name not in OWN_TO_A_TURN} for item in items])
        self.count = self.count + 1 if said == self._last else 1
        self._last = said
        return self.count
