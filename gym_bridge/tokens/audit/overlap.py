"""Words that a file shares with evaluation files: n-grams of words, ignoring case and punctuation.

An n-gram is n words in a row. Brown et al. 2020 (arXiv:2005.14165, appendix C) take an evaluation text for contaminated that
shares one with the training data, n between 8 and 13; lm-evaluation-harness takes 13. Texts shorter than n are looked for as a
whole, down to 8 words. What stands in more than 10 evaluation texts, such as an instruction, counts for nothing: a rule of ours.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gym_bridge.errors import DataError
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.io.rollout_reader import view_row
from gym_bridge.schemas.chat import Message, chat_messages
from gym_bridge.schemas.rollouts import Row
from gym_bridge.tokens.audit.findings import Overlap
from gym_bridge.tokens.audit.kinds import READERS, kind_of
from gym_bridge.tokens.audit.texts import message_text, strings

MIN_WORDS = 8
MAX_TEXTS = 10
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it loses bits
WORD = re.compile(r"\w+")


@dataclass(slots=True)
class _File:
    """An evaluation file: its texts stand one after another in the index, from `first` on."""

    path: Path
    first: int
    num_texts: int = 0
    num_too_short: int = 0
    num_rows: int = 0
    """Audited rows that hold one of its texts."""


@dataclass(slots=True)
class _Index:
    """n-grams of one length: their hashes, sorted, and the text of each."""

    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    texts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


class OverlapCheck:
    """The n-grams of some evaluation files, and which of their texts were found."""

    def __init__(self, paths: Sequence[Path], *, ngram: int):
        """Reads the files. Raises ConfigError for one that cannot be read, DataError for a line that is no JSON object."""
        self._files: list[_File] = []
        self._lines: list[int] = []
        self._indices: dict[int, _Index] = {}
        self._found: set[int] = set()
        grams: dict[int, list[tuple[np.ndarray, int]]] = {}
        seen: set[int] = set()
        for path in paths:
            self._files.append(_File(path, first=len(self._lines)))
            for line, row in read_jsonl(path):
                for text in _evaluation_texts(row):
                    self._take(line, _words(text), ngram, grams, seen)
        for length, found in grams.items():
            self._indices[length] = _index(found)

    def _take(
        self, line: int, words: np.ndarray, ngram: int, grams: dict[int, list[tuple[np.ndarray, int]]], seen: set[int]
    ) -> None:
        """One evaluation text; the same text once more, as in the rollouts of one task, is passed over."""
        file = self._files[-1]
        if len(words) < MIN_WORDS:
            file.num_too_short += bool(len(words))
            return
        length = min(len(words), ngram)
        found = np.unique(_ngrams(words, length))
        whole = hash(words.tobytes())
        if whole in seen:
            return
        seen.add(whole)
        grams.setdefault(length, []).append((found, len(self._lines)))
        self._lines.append(line)
        file.num_texts += 1

    def overlap(self, messages: Sequence[Message]) -> str | None:
        """What of an audited row stands in the evaluation files, system messages apart; None when nothing does."""
        words = _words("\n".join(message_text(one) for one in messages if one["role"] not in ("system", "developer")))
        covered = np.zeros(len(words), dtype=bool)
        texts: list[np.ndarray] = []
        for length, index in self._indices.items():
            if len(words) < length or not len(index.hashes):
                continue
            ngrams = _ngrams(words, length)
            places = np.minimum(np.searchsorted(index.hashes, ngrams), len(index.hashes) - 1)
            hits = np.flatnonzero(index.hashes[places] == ngrams)
            for offset in range(length):
                covered[hits + offset] = True
            texts.append(_texts(index, ngrams[hits]))
        matched = np.concatenate(texts) if texts else np.empty(0, dtype=np.int64)
        if not len(matched):
            return None
        return self._told(matched, float(covered.mean()))

    def _told(self, matched: np.ndarray, share: float) -> str:
        numbers, counts = np.unique(matched, return_counts=True)
        self._found.update(numbers.tolist())
        hit = {self._file_of(number).first: self._file_of(number) for number in numbers.tolist()}
        for file in hit.values():
            file.num_rows += 1
        best = int(numbers[counts.argmax()])
        return f"{share:.0%} of its words stand in {self._file_of(best).path}:{self._lines[best]}"

    def summary(self) -> list[Overlap]:
        """What was found of each evaluation file."""
        return [
            Overlap(
                path=str(file.path),
                num_texts=file.num_texts,
                num_too_short=file.num_too_short,
                num_found=sum(file.first <= number < file.first + file.num_texts for number in self._found),
                num_rows=file.num_rows,
            )
            for file in self._files
        ]

    def _file_of(self, number: int) -> _File:
        return next(file for file in reversed(self._files) if file.first <= number)


def _evaluation_texts(row: Row) -> Iterator[str]:
    """What the user says in the prompt where the row is of a known kind, else every string of the row."""
    try:
        prompt = _prompt(row)
    except DataError:
        prompt = None
    if prompt is None:
        yield from strings(row)
    else:
        yield "\n".join(message_text(one) for one in prompt if one["role"] == "user")


def _prompt(row: Row) -> Sequence[Message] | None:
    """None for a row of no known kind. Raises DataError for one that cannot be read."""
    kind = kind_of(row)
    if kind in ("rollouts", "tasks"):
        return chat_messages(view_row({**row, "reward": None}).context, arguments="string")
    return None if kind is None else READERS[kind](row).prompt


def _words(text: str) -> np.ndarray:
    """Hashes of the words, uint64."""
    words = WORD.findall(text.casefold())
    return np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)


def _ngrams(words: np.ndarray, length: int) -> np.ndarray:
    """Hashes of the n-grams, in order: a polynomial in FACTOR, modulo 2^64."""
    total = np.zeros(len(words) - length + 1, dtype=np.uint64)
    for offset in range(length):
        total = total * FACTOR + words[offset : offset + len(total)]
    return total


def _index(found: Sequence[tuple[np.ndarray, int]]) -> _Index:
    hashes = np.concatenate([one for one, _ in found])
    texts = np.repeat([number for _, number in found], [len(one) for one, _ in found])
    order = hashes.argsort(kind="stable")
    hashes, texts = hashes[order], texts[order]
    _, numbers, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    rare = counts[numbers] <= MAX_TEXTS
    return _Index(hashes[rare], texts[rare])


def _texts(index: _Index, hits: np.ndarray) -> np.ndarray:
    """Texts of each n-gram that was found, once for each n-gram."""
    wanted = np.unique(hits)
    starts, ends = np.searchsorted(index.hashes, wanted), np.searchsorted(index.hashes, wanted, side="right")
    parts = [index.texts[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
