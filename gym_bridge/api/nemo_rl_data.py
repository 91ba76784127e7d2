"""What NeMo RL is about to be given: the files behind `--data`, every row of them checked and measured."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import BYTE_ORDER_MARK, parse_line
from gym_bridge.schemas.chat import chat_messages, chat_tools
from gym_bridge.schemas.nemo_rl_rows import RowKind, row_kind, row_problems
from gym_bridge.transforms.nemo_rl_config import KINDS, Algorithm, DatasetFacts, check_pairing

if TYPE_CHECKING:
    from gym_bridge.tokens.nemo_rl_lengths import LengthMeter

VALIDATION_WORDS = {"validation", "valid", "val"}
SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file of rows."""

    path: Path
    kind: RowKind
    validation: bool


def find_files(data: Sequence[Path], algorithm: Algorithm) -> list[DataFile]:
    """The files that train `algorithm`: those named, or those of a directory, known by their columns.

    A file is for validation when its name, or its directory's below the one named, says validation, valid or val.
    Raises ConfigError when none fits, when rows of two kinds do, and when there is nothing to train on.
    """
    found: list[DataFile] = []
    for path in data:
        found += _in_directory(path, algorithm) if path.is_dir() else [_file(path, Path(path.name), algorithm)]
    kinds = sorted({one.kind for one in found})
    if len(kinds) > 1:
        places = ", ".join(f"{one.path} ({one.kind})" for one in found)
        raise ConfigError(f"rows of several kinds: {places}; name the files of one kind with --data")
    if not any(not one.validation for one in found):
        raise ConfigError(f"no training file among {', '.join(str(one.path) for one in found)}: all are named for validation")
    return found


def _in_directory(directory: Path, algorithm: Algorithm) -> list[DataFile]:
    files = sorted(path for path in directory.rglob("*.jsonl") if not path.name.startswith("."))
    known = [(path, kind) for path in files if (kind := _kind(path)) is not None]
    fitting = [
        DataFile(path=path, kind=kind, validation=_is_validation(path.relative_to(directory)))
        for path, kind in known
        if kind in KINDS[algorithm]
    ]
    if not fitting and known:
        check_pairing(algorithm, known[0][1])
    if not fitting:
        raise ConfigError(
            f"{directory}: no .jsonl file there holds rows that NeMo RL trains on; make some with gym-bridge transform"
        )
    return fitting


def _file(path: Path, name: Path, algorithm: Algorithm) -> DataFile:
    if not path.exists():
        raise ConfigError(f"{path}: No such file or directory")
    if path.suffix not in (".jsonl", ".json"):
        raise ConfigError(f"{path}: NeMo RL reads plain .jsonl files here; unpack or rename it")
    kind = _kind(path)
    if kind is None:
        raise ConfigError(f"{path}: its first row is of no kind that NeMo RL trains on; make rows with gym-bridge transform")
    check_pairing(algorithm, kind)
    return DataFile(path=path, kind=kind, validation=_is_validation(name))


def _kind(path: Path) -> RowKind | None:
    """The kind of the first row; None for a file without one."""
    for line, text in _lines(path):
        if text.strip():
            return row_kind(parse_line(text, path=path, line=line))
    return None


def _is_validation(name: Path) -> bool:
    words = {word for part in name.parts for word in part.lower().replace("-", ".").replace("_", ".").split(".")}
    return bool(words & VALIDATION_WORDS)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line with its number, blank ones too: NeMo RL stumbles over those."""
    try:
        with path.open("rb") as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


@dataclass(slots=True)
class _Survey:
    algorithm: Algorithm
    kind: RowKind
    meter: "LengthMeter"
    rows: Counter[bool] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    longest_output: int = 0
    agents: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def add(self, file: DataFile, line: int, text: bytes) -> None:
        """Check one line and take it into account."""
        place = f"{file.path}:{line}"
        if not text.strip():
            self.problems.append(f"{place}: a blank line, at which NeMo RL's JSON reader stops; remove it")
            return
        if text.startswith(BYTE_ORDER_MARK):
            self.problems.append(f"{place}: a byte-order mark, which NeMo RL's JSON reader refuses; remove it")
            return
        try:
            row = parse_line(text, path=file.path, line=line)
        except DataError as error:
            self.problems.append(str(error))
            return
        if (kind := row_kind(row)) is not self.kind:
            self.problems.append(f"{place}: a row of kind {kind or 'none'} among {self.kind} rows")
            return
        wrong = row_problems(row, self.kind)
        if not wrong:
            try:
                self._measure(row)
            except DataError as error:
                wrong = [str(error)]
        self.problems += [f"{place}: {one}" for one in wrong]
        self.rows[file.validation] += 1

    def _measure(self, row: Mapping[str, Any]) -> None:
        if self.kind is RowKind.TASKS:
            self._measure_task(row)
        elif self.algorithm == "grpo":
            self.longest = max(self.longest, self.meter.prompt([_user(row["input"])]))
            self.longest_output = max(self.longest_output, len(row["output"]))
        else:
            conversations = list(_conversations(row, self.kind))
            tools = row.get("tools") or None
            given = tools if self.kind is RowKind.SFT else None
            lengths = [self.meter.conversation(messages, tools=given) for messages in conversations]
            self.longest = max(self.longest, *(length.num_tokens for length in lengths))
            self.counts["rewritten"] += any(length.rewritten for length in lengths)
            self.counts["tools"] += bool(tools)
            self.counts["objects"] += any(_has_object_arguments(messages) for messages in conversations)
            completions = row["completions"] if self.kind is RowKind.PREFERENCE else []
            self.counts["long_completions"] += any(len(one["completion"]) > 1 for one in completions)

    def _measure_task(self, row: Mapping[str, Any]) -> None:
        params = row["responses_create_params"]
        tools = chat_tools(params["tools"]) if params.get("tools") else None
        if messages := chat_messages(params["input"]):
            self.longest = max(self.longest, self.meter.prompt(messages, tools=tools))
        self.counts["tools"] += bool(tools)
        if isinstance(row.get("agent_ref"), dict):
            self.agents.add(row["agent_ref"]["name"])


def survey(files: Sequence[DataFile], algorithm: Algorithm, meter: "LengthMeter", *, max_positions: int | None) -> DatasetFacts:
    """Read, check and measure every row. Raises DataError with the first rows that NeMo RL would stumble over."""
    seen = _Survey(algorithm, files[0].kind, meter)
    for file in files:
        for line, text in _lines(file.path):
            seen.add(file, line, text)
    if seen.problems:
        shown = "; ".join(seen.problems[:SHOWN_PROBLEMS])
        more = len(seen.problems) - SHOWN_PROBLEMS
        raise DataError(shown + (f"; and {more} more" if more > 0 else ""))
    return DatasetFacts(
        kind=seen.kind,
        train=tuple(str(one.path.resolve()) for one in files if not one.validation),
        validation=tuple(str(one.path.resolve()) for one in files if one.validation),
        num_train=seen.rows[False],
        longest=seen.longest,
        num_rewritten=seen.counts["rewritten"],
        num_with_tools=seen.counts["tools"],
        num_with_object_arguments=seen.counts["objects"],
        num_long_completions=seen.counts["long_completions"],
        longest_output=seen.longest_output,
        max_positions=max_positions,
        dated_template=meter.dated,
        agents=tuple(sorted(seen.agents)),
    )


def max_positions(model_directory: Path) -> int | None:
    """Positions of the model in a Hugging Face directory; None where its config.json does not tell."""
    file = model_directory / "config.json"
    config = orjson.loads(file.read_bytes()) if file.exists() else {}
    found = config.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def _conversations(row: Mapping[str, Any], kind: RowKind) -> Iterator[list[Any]]:
    """What NeMo RL tokenizes of a row: one conversation, or the two sides of a preference."""
    if kind is RowKind.SFT:
        yield row["messages"]
    elif kind is RowKind.RESPONSE:
        yield [_user(row["input"]), _assistant(row["output"])]
    elif kind is RowKind.DPO:
        context = row["prompt"] if isinstance(row["prompt"], list) else [_user(row["prompt"])]
        yield from ([*context, _assistant(row[side])] for side in ("chosen", "rejected"))
    else:
        yield from ([*row["context"], *one["completion"]] for one in row["completions"])


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _has_object_arguments(messages: Sequence[Mapping[str, Any]]) -> bool:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return any(isinstance((call.get("function") or call).get("arguments"), dict) for call in calls)
