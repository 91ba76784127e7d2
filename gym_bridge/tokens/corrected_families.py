"""Renderers of the `renderers` package that write what their models' own chat templates write, where the package does not.

Found in its version 0.1.12; each departure has a test in `tests/tokens/test_template_masks.py`.
"""

from typing import Any

from openai_harmony import Message
from renderers.deepseek_r1 import DeepSeekR1Renderer
from renderers.deepseek_v3 import DeepSeekV3Renderer
from renderers.glm45 import GLM45Renderer
from renderers.gpt_oss import GptOssRenderer


class HarmonyRenderer(GptOssRenderer):
    """GPT-OSS. A conversation that ends with an answer has its reasoning, and that of the calls before it, as its prompt had.

    The package leaves out the reasoning of every answer without calls, and that arguments are JSON.
    """

    def _should_emit_analysis(self, messages: list[Any], msg_idx: int) -> bool:
        if messages[-1]["role"] == "assistant":
            if msg_idx == len(messages) - 1:
                return True
            messages = messages[:-1]
        return super()._should_emit_analysis(messages, msg_idx)

    def _assistant_to_harmony(self, msg: Any, *, preserve_thinking: bool = False) -> list[Message]:
        parts = super()._assistant_to_harmony(msg, preserve_thinking=preserve_thinking)
        return [part.with_content_type("json") if part.recipient else part for part in parts]


class _SpacedCalls:
    """Writes the line break between two calls of one answer, where the package leaves it out."""

    _call_marks: tuple[str, str]
    """Attributes that hold the ids with which a call opens and closes."""

    def _render_assistant(self, *args: Any, emit_special: Any, emit_text: Any, **emitting: Any) -> None:
        opens, closes = (getattr(self, name) for name in self._call_marks)
        just_closed = False

        def special(token: int, message: int, **marks: bool) -> None:
            nonlocal just_closed
            if token == opens and just_closed:
                emit_text("\n", message, **marks)
            emit_special(token, message, **marks)
            just_closed = token == closes

        def text(*args: Any, **marks: bool) -> None:
            nonlocal just_closed
            just_closed = False
            emit_text(*args, **marks)

        parent: Any = super()
        parent._render_assistant(*args, emit_special=special, emit_text=text, **emitting)


class SpacedGLM45Renderer(_SpacedCalls, GLM45Renderer):
    """GLM-4.5. The package breaks the line between calls only where the answer has no other content."""

    _call_marks = ("_tool_call_tok", "_tool_call_end_tok")


class SpacedDeepSeekV3Renderer(_SpacedCalls, DeepSeekV3Renderer):
    """DeepSeek-V3. The package never breaks the line between calls."""

    _call_marks = ("_tool_call_begin", "_tool_call_end")


class SpacedDeepSeekR1Renderer(_SpacedCalls, DeepSeekR1Renderer):
    """DeepSeek-R1. The package never breaks the line between calls."""

    _call_marks = ("_tool_call_begin", "_tool_call_end")


CORRECTED = {
    "gpt-oss": HarmonyRenderer,
    "glm-4.5": SpacedGLM45Renderer,
    "deepseek-v3": SpacedDeepSeekV3Renderer,
    "deepseek-r1": SpacedDeepSeekR1Renderer,
}
"""By the name of the package's renderer."""
