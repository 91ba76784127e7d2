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
from zlib import crc32

import numpy as np

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


def keep_mask(signatures: np.ndarray) -> np.ndarray:
    """True for the texts to keep, [N] bool: the first of every cluster, in the order of `signatures` [N, NUM_HASHES] uint16.

    A text is left out when it is a near-duplicate of one that was kept before it. Time grows with N, not with its square.
    """
    buckets = _shared_buckets(signatures)
    keep: np.ndarray = np.all(buckets < 0, axis=1)
    members: dict[int, list[int]] = {}
    for index in np.flatnonzero(~keep).tolist():
        shared = buckets[index]
        mine = [members.setdefault(bucket, []) for bucket in shared[shared >= 0].tolist()]
        rivals = sorted({rival for bucket in mine for rival in bucket})
        if rivals and (signatures[rivals] == signatures[index]).mean(axis=1).max() >= MIN_SIMILARITY:
            continue
        keep[index] = True
        for bucket in mine:
            bucket.append(index)
            del bucket[:-MAX_PER_BUCKET]
    return keep


def _shared_buckets(signatures: np.ndarray) -> np.ndarray:
    """The bucket of every text in every band, [N, BANDS] int32; -1 where no other text is in it."""
    buckets = np.full((len(signatures), BANDS), -1, dtype=np.int32)
    used = 0
    for band in range(BANDS):
        columns = slice(band * ROWS, (band + 1) * ROWS)
        keys = signatures[:, columns].astype(np.uint64) @ _FACTORS[columns, 0]  # modulo 2^64; rivals are compared in full
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        shared = counts[inverse] > 1
        buckets[shared, band] = inverse[shared] + used
        used += len(counts)
    return buckets
