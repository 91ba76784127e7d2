"""What is done to a reward after the servers gave it: scale, bonus for a format, penalties for length, clipping. In that order."""

from typing import Any

from pydantic import Field, model_validator

from gym_bridge.algorithms.rewards import overlong_penalty
from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.base import Response, VerificationFailed


class FormatBonus(StrictModel):
    """A bonus for answers in a form."""

    markers: list[str] = Field(min_length=1)
    """Texts that the final text must hold, each exactly once and in this order, such as <answer> and </answer>."""
    bonus: float
    """Added to the reward of an answer in that form."""


class LengthPenalty(StrictModel):
    """A penalty for every token."""

    per_token: float = Field(gt=0)
    """Taken off the reward for each token that the model wrote, in units of reward."""
    free_tokens: int = Field(0, ge=0)
    """Tokens that cost nothing."""


class OverlongPenalty(StrictModel):
    """DAPO's soft overlong punishment."""

    max_tokens: int = Field(ge=1)
    """L_max: tokens from which on the penalty is whole."""
    cache_tokens: int = Field(ge=1)
    """L_cache: tokens before `max_tokens` over which the penalty grows."""
    factor: float = Field(1.0, gt=0)
    """Size of the whole penalty, in units of reward."""

    @model_validator(mode="after")
    def _within(self) -> "OverlongPenalty":
        if self.cache_tokens > self.max_tokens:
            raise ValueError(f"cache_tokens={self.cache_tokens} is more than max_tokens={self.max_tokens}")
        return self

    def of(self, num_tokens: int) -> float:
        """What a completion of `num_tokens` loses, at most `factor`; 0 or less."""
        return overlong_penalty(num_tokens, limit=self.max_tokens, buffer=self.cache_tokens, size=self.factor)


class Shaping(StrictModel):
    """What is done to the combined reward; nothing, when all is left out."""

    scale: float = 1.0
    """Factor of the combined reward."""
    format: FormatBonus | None = None
    length: LengthPenalty | None = None
    overlong: OverlongPenalty | None = None
    clip: tuple[float, float] | None = None
    """Lowest and highest reward, after all else."""

    @model_validator(mode="after")
    def _ordered(self) -> "Shaping":
        if self.clip is not None and self.clip[0] > self.clip[1]:
            raise ValueError(f"clip={list(self.clip)}: the first bound is above the second")
        return self


def shaped(reward: float, response: Response, shaping: Shaping) -> tuple[float, dict[str, Any]]:
    """The shaped reward, and each term of it by name for the row.

        clip(scale * r + format_bonus + length_penalty + overlong_penalty, *clip)

    Raises VerificationFailed where a penalty needs the number of tokens and the response does not tell it.
    """
    terms = {"scaled": shaping.scale * reward}
    if shaping.format is not None:
        terms["format_bonus"] = shaping.format.bonus if in_form(response.final_text, shaping.format.markers) else 0.0
    if shaping.length is not None or shaping.overlong is not None:
        num_tokens = response.num_output_tokens
        if num_tokens is None:
            raise VerificationFailed("the response tells no usage.output_tokens, which the length penalty needs")
        if shaping.length is not None:
            terms["length_penalty"] = length_penalty(num_tokens, shaping.length)
        if shaping.overlong is not None:
            terms["overlong_penalty"] = shaping.overlong.of(num_tokens)
    total = sum(terms.values())
    final = total if shaping.clip is None else min(max(total, shaping.clip[0]), shaping.clip[1])
    return final, {**terms, "clipped": final != total}


def in_form(text: str, markers: list[str]) -> bool:
    """Whether each marker stands in `text` exactly once, one after the other."""
    position = 0
    for marker in markers:
        position = text.find(marker, position)
        if position < 0 or text.count(marker) != 1:
            return False
        position += len(marker)
    return True


def length_penalty(num_tokens: int, penalty: LengthPenalty) -> float:
    """-per_token * max(0, num_tokens - free_tokens)."""
    return -penalty.per_token * max(0, num_tokens - penalty.free_tokens)
