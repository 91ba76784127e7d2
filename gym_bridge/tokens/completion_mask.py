"""Which tokens of a rendered conversation the model sampled: those after a generation prompt, to the token that ends an answer.

The `renderers` package marks tokens by what they are made of, and so takes what some prompts open (`<think>`) for sampled and
what the model itself writes between two parts of an answer (the header that names a tool) for its template's.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile

from renderers import RenderedTokens


def completion_mask(rendered: RenderedTokens, *, openings: Sequence[list[int]], stops: Collection[int]) -> list[bool]:
    """True where the model sampled, for each token of `rendered`.

    `openings` are the ids with which generation prompts open an answer, those of the renderer's own settings first; `stops` the
    ids that end one. An answer with none of the openings begins where it departs from the first.
    """
    mask = [False] * len(rendered.token_ids)
    for start, first, end in _answers(rendered, stops):
        ids = rendered.token_ids[start:end]
        lead = next((at for at, token in enumerate(ids[: first - start]) if [token] == openings[0][:1]), 0)  # closes tool outputs
        opened = _opened(ids[lead:], openings)
        begin = start + lead + opened if opened else first
        mask[begin:end] = [True] * (end - begin)
    return mask


def _answers(rendered: RenderedTokens, stops: Collection[int]) -> Iterator[tuple[int, int, int]]:
    """Where each run of one message's tokens starts that holds sampled ones, the first of these, and where the last ends.

    A run ends with a token that ends answers: what a template writes behind it takes another prompt.
    """
    start, first, end = 0, -1, 0
    following = [*rendered.message_indices[1:], None]
    tokens = zip(rendered.token_ids, rendered.message_indices, following, rendered.sampled_mask, strict=True)
    for position, (token, message, next_message, sampled) in enumerate(tokens):
        if sampled:
            first, end = position if first < 0 else first, position + 1
        if message != next_message or token in stops:
            if first >= 0:
                yield start, first, end
            start, first = position + 1, -1


def _opened(ids: list[int], openings: Sequence[list[int]]) -> int:
    """How many tokens at the beginning of `ids` the prompt brought."""
    whole = next((len(one) for one in openings if ids[: len(one)] == one), None)
    return _shared(ids, openings[0]) if whole is None else whole


def _shared(ids: list[int], opening: list[int]) -> int:
    """How many ids both begin with."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(ids, opening, strict=False))
    return sum(1 for _ in pairs)
