"""From conversations to training sequences: assistant tokens train, prompts and tool outputs never do.

Every answer trains once, in the context that the model had when it gave it. Templates that write earlier turns anew once others
follow, as those do that strip old reasoning, make several sequences of a conversation: one for each stretch of answers whose
renderings extend each other token for token.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.renderers import Renderer, Tools

TrainOn = Literal["all", "final"]

NO_ANSWER = "no assistant message to train on"
NO_MASK = "the model's renderer does not tell sampled tokens from those of its template; name another renderer"


def conversation_samples(
    messages: Sequence[Message],
    renderer: Renderer,
    *,
    tools: Tools | None = None,
    num_prompt_messages: int = 0,
    train_on: TrainOn = "all",
    weight: float = 1.0,
) -> tuple[TrainingSequence, ...]:
    """The sequences of a conversation, most often one; what the assistant says after its first `num_prompt_messages` messages
    trains, with `train_on="final"` the last of it only. Messages after the last that trains are left out.

    Raises DataError for what is no conversation, does not render, or has nothing to train on, ConfigError for a renderer that
    knows no mask and whose prompts do not begin its conversations.
    """
    check_messages(messages, tools)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = [index for index in (answers[-1:] if train_on == "final" else answers) if index >= num_prompt_messages]
    if not wanted:
        raise DataError(NO_ANSWER)
    conversation = _Conversation(messages, tools, renderer)
    if len(wanted) > 1 and getattr(renderer, "is_prefix_stable", False):
        samples = [conversation.up_to(wanted[-1]).sample(wanted)]
    else:
        samples = _stretches(conversation, wanted)
    trained = [(ids, mask) for ids, mask in samples if mask.any()]
    if not trained:
        raise DataError(NO_ANSWER)
    return tuple(TrainingSequence(token_ids=ids, train_mask=mask, weight=weight) for ids, mask in trained)


def check_messages(messages: Sequence[Message], tools: Tools | None) -> None:
    """Raises DataError for what a renderer could only fall over."""
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError("every message needs a 'role'")
        if not _are_objects(message.get("tool_calls")):
            raise DataError(f"message {number}: 'tool_calls' is no list of objects")
    if not _are_objects(tools):
        raise DataError("'tools' is no list of objects")


def _are_objects(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(one, dict) for one in value))


Sample = tuple[np.ndarray, np.ndarray]
"""Token ids [T] int32, and which of them train [T] bool."""


class _Rendered(NamedTuple):
    """A conversation up to an answer."""

    token_ids: np.ndarray  # [T] int32
    answer_of: np.ndarray  # [T] int64, the message whose answer a token was sampled for; -1 for none

    def sample(self, answers: Sequence[int]) -> Sample:
        one = answers[0] if len(answers) == 1 else None
        return self.token_ids, np.isin(self.answer_of, answers) if one is None else self.answer_of == one

    def end_of(self, answer: int) -> int:
        """Where the tokens of an answer end; 0 where it has none."""
        own = np.flatnonzero(self.answer_of == answer)
        return int(own[-1]) + 1 if len(own) else 0


class _Conversation:
    """A conversation, to be rendered up to any of its answers."""

    def __init__(self, messages: Sequence[Message], tools: Tools | None, renderer: Renderer):
        self.messages, self.tools, self.renderer = messages, tools, renderer

    def up_to(self, answer: int) -> _Rendered:
        """The messages up to an answer, and which tokens were sampled for which message."""
        rendered = self.renderer.render(self.messages[: answer + 1], tools=self.tools)
        token_ids = np.array(rendered.token_ids, dtype=np.int32)
        if len(rendered.sampled_mask) == len(rendered.message_indices) == len(token_ids):
            answer_of = np.where(rendered.sampled_mask, rendered.message_indices, -1)
        else:
            answer_of = self._told_by_prompt(token_ids, answer)
        return _Rendered(token_ids, answer_of)

    def _told_by_prompt(self, token_ids: np.ndarray, answer: int) -> np.ndarray:
        """An answer is what follows the rendering of its prompt, up to the first token that ends answers."""
        prompt = self.renderer.render_ids(self.messages[:answer], tools=self.tools, add_generation_prompt=True)
        if len(prompt) >= len(token_ids) or not np.array_equal(token_ids[: len(prompt)], prompt):
            raise ConfigError(NO_MASK)
        ends = np.flatnonzero(np.isin(token_ids[len(prompt) :], self.renderer.get_stop_token_ids()))
        answer_of = np.full(len(token_ids), -1)
        answer_of[len(prompt) : len(prompt) + int(ends[0]) + 1 if len(ends) else None] = answer
        return answer_of


def _stretches(conversation: _Conversation, answers: Sequence[int]) -> list[Sample]:
    """A sample for each stretch of answers whose renderings extend each other."""
    last = conversation.up_to(answers[-1])
    held = [answers[-1]]
    samples: list[Sample] = []
    for answer in reversed(answers[:-1]):
        earlier = conversation.up_to(answer)
        end = earlier.end_of(answer)
        if np.array_equal(earlier.token_ids[:end], last.token_ids[:end]):
            last.answer_of[:end] = np.where(earlier.answer_of[:end] == answer, answer, last.answer_of[:end])
            held.append(answer)
        else:
            samples.append(last.sample(held))
            last, held = earlier, [answer]
    return [*reversed([*samples, last.sample(held)])]
