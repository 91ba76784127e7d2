"""Small models of eight families: single bytes, the family's control tokens, and its chat template where that is needed.

Tokens for `control` are special: no text can hold them. Those for `marks` are not: they are read in any text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.renderers import Renderer, load_renderer
from tests.tokens.vocabularies import write_vocabulary

TEMPLATES = Path(__file__).with_name("templates")
DEEPSEEK = tuple(
    f"<｜{name}｜>"
    for name in (
        "begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant", "tool▁sep",
        *(f"tool▁{what}▁{where}" for what in ("calls", "call", "outputs", "output") for where in ("begin", "end")),
    )
)  # fmt: skip
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a small model of it needs."""

    renderer: str | None
    control: tuple[str, ...]
    marks: tuple[str, ...] = ()
    eos_token: str
    bos_token: str | None = None
    template: str | None = None
    """File in `templates/`: for a model whose own template is rendered, or tells its renderer."""
    ends: tuple[str, ...] = ()
    """Tokens that `generation_config.json` names as the ends of answers."""


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "qwen3": Family(renderer="qwen3", control=CHATML, marks=TAGS, eos_token="<|im_end|>"),
    "nemotron": Family(renderer="nemotron-3", control=CHATML, marks=TAGS, eos_token="<|im_end|>"),
    "chatml": Family(renderer="chatml", control=CHATML, eos_token="<|im_end|>"),
    "smollm": Family(renderer=None, control=CHATML, eos_token="<|im_end|>", template="smollm2.jinja"),
    "llama": Family(
        renderer="llama-3",
        control=(
            "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
        ),
        eos_token="<|eot_id|>",
        bos_token="<|begin_of_text|>",
    ),
    "deepseek": Family(renderer="deepseek-v3", control=DEEPSEEK, marks=TAGS[:2], eos_token=DEEPSEEK[1], bos_token=DEEPSEEK[0]),
    "glm": Family(
        renderer="glm-4.5",
        control=("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        marks=(*TAGS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink"),
        eos_token="<|endoftext|>",
    ),
    "gpt-oss": Family(
        renderer="default",
        control=(
            "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
            "<|message|>", "<|call|>",
        ),
        eos_token="<|return|>",
        template="gpt_oss.jinja",
        ends=("<|return|>", "<|endoftext|>", "<|call|>"),
    ),
}  # fmt: skip


def family_renderer(directory: Path, name: str, **options: Any) -> Renderer:
    """A small model of the family and the renderer that is loaded for it."""
    family = FAMILIES[name]
    settings = {key: text for key, text in (("eos_token", family.eos_token), ("bos_token", family.bos_token)) if text}
    template = (TEMPLATES / family.template).read_text(encoding="utf-8") if family.template else None
    write_vocabulary(directory, family.control, family.marks, template=template, **settings)
    ends = [256 + family.control.index(token) for token in family.ends]
    (directory / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    return load_renderer(directory, name=family.renderer, options=options)


def marked(renderer: Renderer, sample: TrainingSequence) -> str:
    """The text of a sequence, with [[what trains]] between marks."""
    changes = np.flatnonzero(np.diff(sample.train_mask, prepend=False)).tolist()
    pieces = [sample.token_ids[start:end] for start, end in zip([0, *changes], [*changes, None], strict=True)]
    texts = [renderer.tokenizer.decode(piece.tolist()) for piece in pieces]
    return "".join(f"[[{text}]]" if number % 2 else text for number, text in enumerate(texts))
