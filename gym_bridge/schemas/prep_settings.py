"""The settings of `gym-bridge prep`, and the manifest that it writes beside its shards."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from gym_bridge.config import StrictModel
from gym_bridge.schemas.nemo_rl_rows import RowKind

TRAIN, VALIDATION = "train", "validation"
MANIFEST_NAME = "manifest.json"


class PrepSettings(StrictModel):
    """`gym-bridge prep`."""

    output: Path
    """Directory of the shards, one folder a split, and of manifest.json."""
    source: tuple[str, ...] = ()
    """Where the rows stand that placeholders of a dataset name: DATASET=PATH, a .jsonl or .parquet file or a directory of them,
    or DATASET=ORG/NAME:SPLIT on the Hugging Face hub. The two datasets of Nemotron's blends are known."""
    question_field: str = "prompt.0.content"
    """Dotted path of the question in a source's row."""
    answer_field: str = "reward_model.ground_truth"
    """Dotted path of the reference answer in a source's row."""
    agent: str | None = None
    """The NeMo Gym agent of task rows that name none in agent_ref."""
    num_shards: PositiveInt = 1
    """Files of each split, filled one after the other, which differ by one row at most; no more of them than rows."""
    compression: Literal["none", "zstd"] = "none"
    """Shards as plain .jsonl, which NeMo RL reads, or .jsonl.zst."""
    max_rows: PositiveInt | None = None
    """Keep the first so many good rows of each split."""
    split: float | None = Field(default=None, gt=0, lt=1)
    """Share of the tasks of train that go to validation, by their prompts: rows with one prompt stay together."""
    seed: int = 0
    """Which tasks go to validation."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop when any row is bad, or leave bad rows out and list them in the manifest."""


class Shard(StrictModel):
    """One finished file."""

    path: str
    """Relative to the manifest."""
    rows: int
    bytes: int
    sha256: str
    """Of the file as it is on disk."""


class SplitShards(StrictModel):
    """The files of one split."""

    rows: int
    """Rows of all its shards, once it is complete."""
    shards: tuple[Shard, ...] = ()


class PrepInput(StrictModel):
    """One file that was read."""

    path: str
    split: str
    sha256: str


class PrepManifest(StrictModel):
    """What a run of prep made of what: rows_in = rows of all splits + beyond_max_rows + the number of bad rows."""

    version: Literal[1] = 1
    key: str
    """SHA-256 over inputs, sources and settings; only a run with the same key resumes this one."""
    complete: bool
    """Every shard is written."""
    kind: RowKind
    """What the rows are."""
    rows_in: int
    placeholders: int
    """Rows whose question came from a source."""
    beyond_max_rows: int
    bad_rows: tuple[str, ...]
    """`path:line: problem` of each row left out."""
    inputs: tuple[PrepInput, ...]
    sources: dict[str, str]
    """Dataset that placeholders name -> where its rows came from."""
    compression: str
    splits: dict[str, SplitShards]
