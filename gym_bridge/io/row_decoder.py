"""Lines of a rollouts file to rows, at two to four times the rate of a full parse: fields that nobody asks for are skipped.

The fast path knows the common shape of a row and takes nothing else: any other type, role or part in a field that is read
sends the line to a full parse, and the tolerant reader decides. Both paths tell of the same rollout.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypedDict

from msgspec import DecodeError, Meta, Raw
from msgspec.json import Decoder

from gym_bridge.io.jsonl import parse_line
from gym_bridge.io.rollout_reader import PLACEHOLDER
from gym_bridge.schemas.rollouts import Row

Index = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What orjson reads as an integer too."""


class _Part(TypedDict, total=False):
    """A part with text. Parts of other types are read whole, by the full parse."""

    type: Literal["output_text", "input_text", "text", "summary_text", "reasoning_text", "refusal"]
    text: str
    refusal: str


_Content = str | list[_Part] | None


class _Item(TypedDict, total=False):
    type: Literal["message", "reasoning", "function_call", "function_call_output"]
    role: Literal["user", "assistant", "system", "developer"]
    content: _Content
    summary: list[_Part] | None
    call_id: str
    name: str
    arguments: str
    output: _Content
    generation_token_ids: Raw
    tool_calls: None
    reasoning_content: None


class _Params(TypedDict, total=False):
    input: str | list[_Item] | None
    instructions: str | None
    tools: Raw
    metadata: dict[str, str] | None


class _Usage(TypedDict, total=False):
    input_tokens: Any
    output_tokens: Any
    total_tokens: Any
    prompt_tokens: Any
    completion_tokens: Any


class _Response(TypedDict, total=False):
    id: str | None
    status: str | None
    incomplete_details: dict[str, Any] | None
    output: list[_Item] | None
    tools: Raw
    usage: _Usage | None


class _Agent(TypedDict, total=False):
    name: str | None


class _Instance(TypedDict, total=False):
    mask_sample: bool | None


class _Row(TypedDict, total=False):
    responses_create_params: _Params | None
    response: _Response | None
    reward: float | None
    agent_ref: _Agent | None
    _ng_task_index: Index | None
    _ng_rollout_index: Index | None
    task_id: str | Index | None
    gym_bridge: dict[str, Any] | None
    truncated: bool | None
    mask_sample: bool | None
    instance_config: _Instance | None
    verification_skipped: bool | None
    _ng_failure_class: str | None
    _ng_no_persist: bool | None
    output: None
    messages: None


FIELDS = tuple(_Row.__annotations__)
"""The top-level fields of a decoded row."""


class RowDecoder:
    """Decodes lines into rows that hold `FIELDS` and `more_fields`, and no more of them than a view and its chat read.

    `tools` and token ids may stand in a row as undecoded JSON (`msgspec.Raw`): RolloutView knows how to read them.
    """

    def __init__(self, more_fields: Iterable[str] = ()):
        """`more_fields` are names of top-level fields that are wanted too, whole; also of those in FIELDS."""
        fields = {**_Row.__annotations__, **dict.fromkeys(more_fields, Any)}
        self._decoder: Decoder[Any] = Decoder(TypedDict("_Row", fields, total=False))  # pyright: ignore[reportArgumentType]

    def decode(self, line: bytes) -> Row:
        """The row of one line; `{}`, which is no rollout, for a placeholder.

        Raises DataError as `parse_line` does, without path and line. One thing passes that a full parse refuses: a number beyond
        the range of doubles in a field that is skipped.
        """
        try:
            if not line.isascii():
                line.decode()
            return self._decoder.decode(line)
        except (DecodeError, UnicodeDecodeError, RecursionError):
            return {} if line.strip() == PLACEHOLDER else parse_line(line, path=None)
