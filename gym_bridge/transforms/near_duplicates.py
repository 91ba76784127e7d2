"""Texts that say almost the same, found by MinHash and locality-sensitive hashing.

A text is the set of its shingles, its runs of three words. The Jaccard index J of two sets, the size of their intersection by
that of their union, equals the probability that a random hash has its minimum over both at the same element (Broder 1997, "On
the resemblance and containment of documents"), so the share of NUM_HASHES minima that agree estimates it, with a standard
deviation of sqrt(J (1 - J) / NUM_HASHES): 0.036 at 0.8. Minima are kept as 16 bits (Li and König 2010, "b-bit minwise
hashing"), which agree by chance once in 65 536.

Only texts that agree in one of BANDS bands of ROWS minima each are compared. Such a band exists with probability
1 - (1 - J^ROWS)^BANDS (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4): 0.998 at J = 0.8, 0.63 at
0.6, 0.08 at 0.4.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from typing import Self
from zlib import crc32

import numpy as np

from gym_bridge.io.blocks import told_as_spooling

SHINGLE_WORDS = 3
BANDS, ROWS = 21, 6
NUM_HASHES = BANDS * ROWS
MIN_SIMILARITY = 0.8
"""Estimated Jaccard index from which on two texts are near-duplicates."""
MAX_PER_BUCKET = 64
"""Texts that a bucket remembers, the latest: what many different texts share, such as a system prompt, is no sign of a duplicate,
and comparing with all of them would take quadratic time."""

_CONSTANTS = np.frombuffer(hashlib.shake_128(b"minhash").digest(16 * NUM_HASHES + 8 * SHINGLE_WORDS), dtype="<u8").astype(np.uint64)
_FACTORS = _CONSTANTS[:NUM_HASHES, None] | np.uint64(1)
_SUMMANDS = _CONSTANTS[NUM_HASHES : 2 * NUM_HASHES, None]
_WORD_FACTORS = _CONSTANTS[2 * NUM_HASHES :] | np.uint64(1)
_MIXER = np.uint64(0x9E3779B97F4A7C15)
_SHINGLES_AT_ONCE = 4096
_TEXTS_AT_ONCE = 4096
SIGNATURE_BYTES = 2 * NUM_HASHES


def signature(text: str) -> np.ndarray:
    """The MinHash of a text: [NUM_HASHES] uint16, the same in every process.

    Words stand between white space. A text of fewer words than a shingle is one element, so that it is like itself alone; so is
    most of a text in a script that writes no spaces.
    """
    minima = np.full(NUM_HASHES, np.iinfo(np.uint64).max)
    elements = _elements(text)
    for start in range(0, len(elements), _SHINGLES_AT_ONCE):  # so that a long text takes no more memory than its words do
        hashes = elements[start : start + _SHINGLES_AT_ONCE] * _FACTORS
        hashes += _SUMMANDS
        np.minimum(minima, hashes.min(axis=1), out=minima)
    minima ^= minima >> np.uint64(32)  # minima of many hashes are small: their upper bits tell nothing before they are mixed
    minima *= _MIXER
    return (minima >> np.uint64(48)).astype(np.uint16)


def _elements(text: str) -> np.ndarray:
    """Hashes of the shingles, [S] uint64."""
    words = text.encode("utf-8", "surrogatepass").split()
    if len(words) < SHINGLE_WORDS:
        return np.frombuffer(hashlib.blake2b(b" ".join(words), digest_size=8).digest(), dtype="<u8").astype(np.uint64)
    hashes = np.fromiter(map(crc32, words), dtype=np.uint64, count=len(words))
    num_shingles = len(words) - SHINGLE_WORDS + 1
    parts = [hashes[place : place + num_shingles] * factor for place, factor in enumerate(_WORD_FACTORS)]
    shingles = parts[0] + parts[1] + parts[2]
    return shingles ^ (shingles >> np.uint64(29))


class SignatureFile:
    """Signatures of many texts, in order, in a temporary file: a million of them would take 240 MiB of memory.

    Read like an array [N, NUM_HASHES] uint16: by a number, a list of numbers, or a slice. A `with` block removes it.
    """

    def __init__(self) -> None:
        """Raises ConfigError when no temporary file can be made."""
        with told_as_spooling():
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by __exit__
        self._num = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, signatures: np.ndarray) -> None:
        """Add some. Raises ConfigError when there is no room for them."""
        rest = memoryview(signatures.astype(np.uint16).tobytes())
        with told_as_spooling():
            while rest:
                rest = rest[self._file.write(rest) :]
        self._num += len(signatures)

    def skip(self, count: int) -> None:
        """Pass over `count` texts without a signature; none of them is read."""
        self._num += count
        self._file.seek(self._num * SIGNATURE_BYTES)

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, texts: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(texts, slice):
            start, stop, _ = texts.indices(self._num)
            return self._read(start, stop - start)
        if isinstance(texts, np.ndarray):
            return np.concatenate([self._read(text, 1) for text in texts.tolist()])
        return self._read(texts, 1)[0]

    def _read(self, start: int, count: int) -> np.ndarray:
        data = os.pread(self._file.fileno(), count * SIGNATURE_BYTES, start * SIGNATURE_BYTES)
        return np.frombuffer(data.ljust(count * SIGNATURE_BYTES, b"\0"), dtype=np.uint16).reshape(count, NUM_HASHES)


Signatures = np.ndarray | SignatureFile
"""[N, NUM_HASHES] uint16."""


def keep_mask(signatures: Signatures, texts: np.ndarray | None = None) -> np.ndarray:
    """True for the texts to keep, [T] bool: the first of every cluster among `texts`, ascending row numbers of `signatures`, [T]
    (all of them by default).

    A text is left out when it is a near-duplicate of one that was kept before it. Time grows with T, not with its square; memory
    is about 120 bytes a text.
    """
    texts = np.arange(len(signatures), dtype=np.uint32) if texts is None else texts
    buckets, num_buckets = _shared_buckets(signatures, texts)
    keep: np.ndarray = np.all(buckets < 0, axis=1)
    kept = _Kept(buckets, num_buckets)
    for text in np.flatnonzero(~keep).tolist():
        places = kept.places(text)
        if not any(_is_like_one(signatures, texts[text], texts[rivals]) for rivals in kept.rivals(places)):
            keep[text] = True
            kept.add(text, places)
    return keep


class _Kept:
    """The texts of every bucket that were kept, the latest first: a chain through the array of buckets itself, of which the part
    of a text is read no more once the text is kept."""

    def __init__(self, buckets: np.ndarray, num_buckets: int):
        """`buckets` [T, BANDS] int32 are written over."""
        self._latest = np.full(num_buckets, -1, dtype=np.int32).data
        self._next = buckets.reshape(-1).data

    def places(self, text: int) -> list[int]:
        """Where in the array the buckets of a text stand."""
        return [place for place in range(text * BANDS, (text + 1) * BANDS) if self._next[place] >= 0]

    def rivals(self, places: list[int]) -> Iterator[list[int]]:
        """Texts that share a bucket: the likeliest one first, as it is all that most duplicates need be compared with."""
        latest = [one for place in places if (one := self._latest[self._next[place]]) >= 0]
        if latest:
            yield [max(latest, key=latest.count)]
            yield sorted({one for place in places for one in self._members(self._next[place], place % BANDS)})

    def add(self, text: int, places: list[int]) -> None:
        """Remember a text in its buckets."""
        for place in places:
            bucket = self._next[place]
            self._next[place], self._latest[bucket] = self._latest[bucket], text

    def _members(self, bucket: int, band: int) -> Iterator[int]:
        text = self._latest[bucket]
        for _ in range(MAX_PER_BUCKET):
            if text < 0:
                return
            yield text
            text = self._next[text * BANDS + band]


def _is_like_one(signatures: Signatures, text: int, others: np.ndarray) -> bool:
    return bool((signatures[others] == signatures[int(text)]).mean(axis=1).max() >= MIN_SIMILARITY)


def _shared_buckets(signatures: Signatures, texts: np.ndarray) -> tuple[np.ndarray, int]:
    """The bucket of every text in every band, [T, BANDS] int32; -1 where no other text is in it. And the number of buckets."""
    buckets = np.full((len(texts), BANDS), -1, dtype=np.int32)
    used = 0
    for band in range(BANDS):
        _, inverse, counts = np.unique(_band_keys(signatures, texts, band), return_inverse=True, return_counts=True)
        shared = counts > 1
        numbers = np.where(shared, np.cumsum(shared) - 1 + used, -1).astype(np.int32)
        buckets[:, band] = numbers[inverse]
        used += int(shared.sum())
    return buckets, used


def _band_keys(signatures: Signatures, texts: np.ndarray, band: int) -> np.ndarray:
    """Equal for texts whose minima agree in a band, [T] uint64, modulo 2^64; rivals are compared in full."""
    columns = slice(band * ROWS, (band + 1) * ROWS)
    keys = np.empty(len(texts), dtype=np.uint64)
    for start in range(0, len(signatures), _TEXTS_AT_ONCE):
        first, last = np.searchsorted(texts, (start, start + _TEXTS_AT_ONCE)).tolist()
        if first < last:
            read = signatures[start : start + _TEXTS_AT_ONCE][texts[first:last] - start, columns]
            keys[first:last] = read.astype(np.uint64) @ _FACTORS[columns, 0]
    return keys
