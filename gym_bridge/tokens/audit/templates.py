"""Whether a conversation renders: by the model's renderer, and its order of roles by the model's own chat template.

NeMo RL, TRL and inference servers render with the chat template, which may refuse an order of roles or leave a message out
where the renderer of the family does not.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import numpy as np

from gym_bridge.schemas.chat import Message
from gym_bridge.schemas.tokens import Segment, TrainingSequence
from gym_bridge.tokens.audit.kinds import Conversation
from gym_bridge.tokens.audit.texts import message_text
from gym_bridge.tokens.chat_samples import chat_samples
from gym_bridge.tokens.family_renderer import FamilyRenderer
from gym_bridge.tokens.guarded_tokenizer import GuardedTokenizer
from gym_bridge.tokens.renderers import Renderer

MAX_SHAPES = 10_000  # orders of roles that are remembered
TOOL: dict[str, Any] = {"name": "ftool", "description": "d", "parameters": {"type": "object", "properties": {}}}
CALLED = "fcall"
TEMPLATE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, jinja2.TemplateError)

Speaker = tuple[str, int, str]
"""Role of a message, number of its tool calls, and how it reasons: in a `field`, in its `text`, or not at all."""
Shape = tuple[tuple[Speaker, ...], bool, bool]
"""Who speaks, whether there are tools, whether an answer is opened."""
Refusal = tuple[str, str]
"""Check and message."""


class RoleCheck:
    """Asks the model's own chat template about an order of roles, once each: a conversation of that shape is rendered."""

    def __init__(self, renderer: Renderer):
        tokenizer = renderer.tokenizer
        self._tokenizer = tokenizer if isinstance(tokenizer, GuardedTokenizer) and tokenizer.chat_template else None
        self._known: dict[Shape, Refusal | None] = {}

    def refusal(self, conversation: Conversation) -> Refusal | None:
        """Why the template does not take these roles in this order, or what it leaves out; None when all is well.

        None too where the renderer is the template: ChatML takes every order.
        """
        if self._tokenizer is None:
            return None
        shape = (tuple(map(_speaker, conversation.messages)), bool(conversation.tools), conversation.asks)
        if shape not in self._known:
            if len(self._known) >= MAX_SHAPES:
                self._known.clear()
            self._known[shape] = _refusal(self._tokenizer, *shape)
        return self._known[shape]


def _speaker(message: Message) -> Speaker:
    reasons = "field" if message.get("reasoning_content") else "text" if "</think>" in message_text(message) else ""
    return message["role"], len(message.get("tool_calls") or ()), reasons


def _refusal(tokenizer: GuardedTokenizer, speakers: Sequence[Speaker], has_tools: bool, asks: bool) -> Refusal | None:
    messages = _stand_ins(speakers)
    tools = [{"type": "function", "function": TOOL}] if has_tools else None
    try:
        ids = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=asks)
    except TEMPLATE_ERRORS as error:
        order = ", ".join(role for role, _, _ in speakers)
        return "roles", f"the model's chat template refuses the roles {order}: {type(error).__name__}: {error}"
    if what := _left_out(tokenizer.decode(ids), speakers, has_tools):
        return "unrendered", f"the model's chat template leaves out {what}"
    for number, (role, _, _) in enumerate(speakers[:-1]):
        if role == "assistant" and _is_rewritten(tokenizer, messages[: number + 1], tools, ids):
            return (
                "history",
                f"the model's chat template writes message {number} otherwise once others follow; "
                "render whole conversations, not turn by turn",
            )
    return None


def _left_out(text: str, speakers: Sequence[Speaker], has_tools: bool) -> str | None:
    for number, (role, _, _) in enumerate(speakers):
        if f"m{number}q" not in text:
            return f"message {number}, of role {role!r}"
    if has_tools and TOOL["name"] not in text:
        return "the tools"
    return "tool calls" if any(count for _, count, _ in speakers) and CALLED not in text else None


def _is_rewritten(tokenizer: GuardedTokenizer, messages: list[dict[str, Any]], tools: Any, whole: list[int]) -> bool:
    """Whether the conversation so far does not begin the whole one; line ends apart, which templates put between messages."""
    try:
        so_far = tokenizer.decode(tokenizer.apply_chat_template(messages, tools=tools))
    except TEMPLATE_ERRORS:
        return False
    return not tokenizer.decode(whole).startswith(so_far.rstrip())


def _stand_ins(speakers: Sequence[Speaker]) -> list[dict[str, Any]]:
    """Messages of these roles, whose text tells their number; tool outputs answer the calls in order."""
    messages: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for number, (role, num_calls, reasons) in enumerate(speakers):
        message: dict[str, Any] = {
            "role": role,
            "content": ("<think>\nr\n</think>\n\n" if reasons == "text" else "") + f"m{number}q",
        }
        if reasons == "field":
            message["reasoning_content"] = "r"
        if num_calls:
            calls = [f"c{number:04d}{one:04d}"[:9] for one in range(num_calls)]  # nine letters, as one family wants
            function = {"name": CALLED, "arguments": {}}
            message["tool_calls"] = [{"id": call, "type": "function", "function": function} for call in calls]
            open_calls += calls
        if role == "tool":
            message |= {"tool_call_id": open_calls.pop(0) if open_calls else "c00000000", "name": CALLED}
        messages.append(message)
    return messages


def rendered_segment(conversation: Conversation, renderer: Renderer) -> Segment:
    """Tokens of a conversation, as its renderer writes it, and which of them were sampled: none where it cannot tell.

    Raises DataError for what it cannot render.
    """
    rendered = renderer.render(conversation.messages, tools=conversation.tools, add_generation_prompt=conversation.asks)
    num_tokens = len(rendered.token_ids)
    mask = np.zeros(num_tokens, dtype=bool)
    if len(rendered.sampled_mask) == num_tokens == len(rendered.message_indices):
        mask |= rendered.sampled_mask
        mask &= np.array(rendered.message_indices) >= conversation.num_prompt_messages
    return _segment(rendered.token_ids, mask)


class TrainedChats:
    """What SFT trains on: the sequences of the trainer itself. Each answer must begin where its prompt ends."""

    def __init__(self, renderer: Renderer):
        self._renderer: Any = _Recorder(renderer)

    def segments(self, row: dict[str, Any]) -> tuple[tuple[Segment, ...], str | None]:
        """The sequences of a chat row, and what is wrong with a mask.

        Raises DataError for a row that does not render or has nothing to train on, ConfigError for a renderer without masks.
        """
        self._renderer.rendered.clear()
        samples = chat_samples(row, self._renderer)
        wrong = next((found for one in samples for found in self._misplaced(one, row)), None)
        return tuple(_segment(one.token_ids, one.train_mask) for one in samples), wrong

    def _misplaced(self, sample: TrainingSequence, row: dict[str, Any]) -> Iterator[str]:
        """Answers that begin elsewhere. Where the renderer does not tell whose a token is there are none: an answer is what follows
        its prompt then."""
        indices = self._renderer.rendered.get(sample.token_ids.tobytes(), ())
        if len(indices) != len(sample.token_ids):
            return
        trained = np.flatnonzero(sample.train_mask)
        for message, first in zip(*np.unique(np.array(indices)[trained], return_index=True), strict=True):
            begin, before = int(trained[first]), row["messages"][:message]
            if not before:  # not every family has a prompt of nothing
                continue
            prompts = self._prompts(before, tools=row.get("tools"))
            if sample.token_ids[:begin].tolist() not in prompts:
                yield f"message {message} trains from token {begin} on, and its prompt has {len(prompts[0])} tokens"

    def _prompts(self, messages: Sequence[Message], *, tools: Any) -> list[list[int]]:
        if isinstance(renderer := self._renderer.renderer, FamilyRenderer):
            return renderer.prompts(messages, tools=tools)
        return [renderer.render_ids(messages, tools=tools, add_generation_prompt=True)]


class _Recorder:
    """A renderer that keeps whose the tokens of its renderings are."""

    def __init__(self, renderer: Renderer):
        self.renderer = renderer
        self.rendered: dict[bytes, Sequence[int]] = {}
        """Message of each token, by the ids."""

    def render(self, *args: Any, **options: Any) -> Any:
        rendered = self.renderer.render(*args, **options)
        self.rendered[np.array(rendered.token_ids, dtype=np.int32).tobytes()] = rendered.message_indices
        return rendered

    def __getattr__(self, name: str) -> Any:
        return getattr(self.renderer, name)


def _segment(token_ids: Any, mask: np.ndarray) -> Segment:
    ids = np.array(token_ids, dtype=np.int32)
    return Segment(token_ids=ids, completion_mask=mask, rollout_logprobs=np.full(len(ids), np.nan, dtype=np.float32))
