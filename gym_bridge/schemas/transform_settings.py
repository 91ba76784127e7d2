"""The settings of `gym-bridge transform`. An option that the target format does not heed is refused, never ignored."""

from typing import Literal

from pydantic import Field, PositiveInt

from gym_bridge.config import StrictModel
from gym_bridge.schemas.remote_names import FileName

PairStrategy = Literal["best_worst", "all", "adjacent", "random"]
OnBadRow = Literal["error", "skip"]


class _Target(StrictModel):
    """What is made. Apart, so that it comes first in the help."""

    to: str
    """Target format: response, sft, grpo, dpo, preference, tasks, or the dotted path of a format of your own."""
    output: FileName
    """The dataset file, a path or a URL such as s3://bucket/sft.jsonl; it is whole or not there."""


class FormatOptions(StrictModel):
    """How the columns of a row are written; each format heeds some of these. Null: the format's own default."""

    flatten: Literal["final", "transcript"] | None = None
    """The answer in response, grpo and dpo rows: the last answer alone (default), or the whole transcript with tool calls and their
    outputs told in the text."""
    arguments: Literal["object", "string"] | None = None
    """Tool-call arguments in sft and preference rows: objects, as chat templates expect them (default), or JSON strings."""
    flat_tool_calls: bool = False
    """Tool calls in sft rows as {"name", "arguments"} alone and outputs without ids, the short form of guides, in which order tells
    which output answers which call; most templates want the nested one."""
    prompt: Literal["text", "messages"] | None = None
    """The prompt of dpo rows: one text, in which a blank line joins several messages (default), or the list of messages."""
    output_field: str | None = None
    """Where grpo rows find the task's reference answer: a field of the task's row or a dotted path (default expected_answer)."""


class TransformSettings(FormatOptions, _Target):
    """`gym-bridge transform`."""

    min_reward: str | None = None
    """Keep rollouts with at least this reward; `none` keeps all (default 0.9 for response and sft, `none` for pairs). Of a pair the
    chosen one must have it; in grpo it makes an answer the truth of a task without a reference (default 0.9)."""
    where: str | None = None
    """Keep rollouts for which this holds, such as "num_turns <= 8 and not truncated"; --columns lists the names."""
    where_group: str | None = None
    """Keep tasks for whose rollouts this holds, such as "0 < pass_rate < 1"; --columns lists the names."""
    reward: str | None = None
    """Take this as the reward, such as "0.8*accuracy + 0.2*format"."""
    best_of: PositiveInt | None = None
    """Keep at most so many rollouts of a task, those with the highest rewards."""
    pairs: PairStrategy | None = None
    """Which siblings make a pair: the best with the worst (default), all that differ, neighbours in reward, or drawn at random."""
    min_margin: float | None = Field(default=None, ge=0)
    """Pairs need a reward gap larger than this (default 0)."""
    max_pairs_per_task: PositiveInt | None = None
    """Keep at most so many pairs of a task, those with the widest margins."""
    split: float | None = Field(default=None, gt=0, lt=1)
    """Share of the tasks that go to validation: OUT.train.jsonl and OUT.validation.jsonl are written instead of OUT.jsonl."""
    seed: int | None = None
    """Decides which tasks go to validation, and which pairs are drawn at random (default 0)."""
    dedupe: Literal["exact", "near"] | None = None
    """Drop rollouts that repeat an earlier one: the same prompt and doings, or texts that share 80 % of their word triples."""
    workers: PositiveInt = 1
    """Processes that read and convert; the output is the same for any number."""
    ray: str | None = None
    """Let Ray Data read and convert, in so many workers: auto, the cluster of this machine; local, one that is started here; or
    HOST:PORT. Its machines see the inputs under the same paths."""
    bare: bool = False
    """Leave out the `gym_bridge` column, which tells where a row comes from."""
    allow_empty: bool = False
    """Write files without rows where nothing is left for them, rather than fail."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read or converted, or drop and count it."""
    report: FileName | None = None
    """Write counts and statistics to this file as JSON, and beside it as a page, with the suffix .html."""
