import hashlib
import os
import random
import subprocess
import sys
from functools import cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.transforms import near_duplicates
from gym_bridge.transforms.near_duplicates import BANDS, NUM_HASHES, ROWS, SignatureFile, keep_mask, signature


def numbered(start: int, stop: int) -> str:
    return " ".join(f"word{number}" for number in range(start, stop))


@cache
def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[place : place + 3]) for place in range(len(words) - 2)}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def kept(texts: list[str]) -> list[int]:
    return np.flatnonzero(keep_mask(np.stack([signature(text) for text in texts]))).tolist()


def test_the_share_of_equal_minima_estimates_the_jaccard_index():
    errors = []
    for shift in range(0, 200, 4):
        a, b = numbered(0, 202), numbered(shift, shift + 202)  # 200 shingles each, 200 - shift in common
        exact = (200 - shift) / (200 + shift)
        assert jaccard(a, b) == exact
        errors.append(np.mean(signature(a) == signature(b)) - exact)
    # each error has a standard deviation of at most 0.5 / sqrt(126) = 0.045
    assert np.max(np.abs(errors)) < 0.18
    assert abs(np.mean(errors)) < 0.03


def test_a_band_of_equal_minima_is_near_certain_at_the_threshold_and_rare_far_below_it():
    def chance(similarity: float) -> float:
        return 1 - (1 - similarity**ROWS) ** BANDS

    assert chance(0.8) > 0.998
    assert chance(0.4) < 0.09
    assert NUM_HASHES == 126


def test_the_first_of_every_cluster_is_kept_in_order():
    a, b = numbered(0, 202), numbered(1000, 1202)
    near_a = a.replace("word100", "other")  # 197 of 203 shingles in common
    near_b = b + " and so on"
    far_from_a = numbered(67, 269)  # 133 of 267 shingles in common
    assert kept([a, b, near_a, far_from_a, near_b, a, b]) == [0, 1, 3]
    assert kept([near_b, near_a, a, b]) == [0, 1]
    assert keep_mask(np.empty((0, NUM_HASHES), dtype=np.uint16)).tolist() == []


def test_a_text_is_compared_with_kept_ones_only():
    a, b, c = numbered(0, 302), numbered(20, 322), numbered(40, 342)
    assert jaccard(a, b) == jaccard(b, c) == 280 / 320  # 0.875
    assert jaccard(a, c) == 260 / 340  # 0.765: near, but no near-duplicate
    assert kept([a, b, a]) == [0]
    far = numbered(60, 362)
    assert jaccard(a, far) == 240 / 360
    assert kept([a, b, far]) == [0, 2], "b is gone, so far has no near-duplicate left"


def test_signatures_in_a_file_tell_what_those_in_memory_do():
    texts = [numbered(0, 202), numbered(0, 203), numbered(500, 702), numbered(0, 204), numbered(500, 703)]
    signatures = np.stack([signature(text) for text in texts])
    with SignatureFile() as file:
        file.append(signatures[:2])
        file.skip(3)  # lines that were dropped
        file.append(signatures[2:])
        assert len(file) == 8
        assert np.array_equal(file[5], signatures[2])
        assert np.array_equal(file[np.array([7, 0])], signatures[[4, 0]])
        assert np.array_equal(file[1:6], np.concatenate([signatures[1:2], np.zeros((3, NUM_HASHES)), signatures[2:3]]))
        assert keep_mask(file, np.array([0, 1, 5, 6, 7], dtype=np.uint32)).tolist() == [True, False, True, False, False]
        assert keep_mask(file, np.array([1, 7], dtype=np.uint32)).tolist() == [True, True]


def test_a_file_that_ends_with_lines_without_a_signature_has_zeros_there():
    with SignatureFile() as file:
        file.append(signature("a b c")[None])
        file.skip(2)
        assert not file[1:3].any()
        assert file[1:3].shape == (2, NUM_HASHES)


def test_a_bucket_remembers_the_latest_texts(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MAX_PER_BUCKET", 2)
    shared = np.zeros((5, NUM_HASHES), dtype=np.uint16)  # all in one bucket of the first band, alike in nothing else
    shared[:, ROWS:] = np.arange(5 * (NUM_HASHES - ROWS)).reshape(5, -1)
    again = shared[[4, 3, 0]]  # near-duplicates that share that bucket alone
    again[:, ROWS::ROWS] += 60_000
    assert keep_mask(np.concatenate([shared, again])).tolist() == [True] * 5 + [False, False, True]


def test_random_edits_agree_with_the_exact_index():
    rng = random.Random(1)
    texts: list[str] = []
    for number in range(60):
        words = numbered(number * 1000, number * 1000 + 250).split()
        texts.append(" ".join(words))
        for edits in (3, 80):  # far above the threshold and far below it
            edited = list(words)
            for place in rng.sample(range(250), edits):
                edited[place] = f"edit{rng.randrange(10**6)}"
            texts.append(" ".join(edited))
    rng.shuffle(texts)
    reference: list[int] = []
    for index, text in enumerate(texts):
        similarities = [jaccard(text, texts[other]) for other in reference]
        assert not any(0.65 < one < 0.92 for one in similarities)
        if not any(one >= 0.8 for one in similarities):
            reference.append(index)
    assert kept(texts) == reference
    assert len(reference) == 120


def test_short_texts_are_like_themselves_alone():
    assert kept(["yes", "no", "yes", "", "yes no", "no yes", "", " yes\n", "yes  no", "yes no maybe"]) == [0, 1, 3, 4, 5, 9]


def test_many_short_texts_are_told_apart():
    assert len(kept([f"{number}" for number in range(5_000)])) == 5_000


def test_white_space_does_not_matter_and_order_does():
    assert np.array_equal(signature("a b  c\nd"), signature(" a b c d "))
    assert not np.array_equal(signature("a b c d"), signature("d c b a"))


def test_what_many_texts_share_is_no_duplicate_and_hides_none():
    prompt = numbered(0, 202)
    texts = [f"{prompt} {numbered(1000 * one, 1000 * one + 150)}" for one in range(1, 301)]
    assert jaccard(texts[0], texts[1]) == 0.4  # 200 of 500 shingles
    assert kept([copy for text in texts for copy in (text, text + " indeed")]) == list(range(0, 600, 2))


def test_a_signature_is_the_same_in_every_process_and_of_a_text_of_any_length():
    program = (
        "import hashlib\nfrom gym_bridge.transforms.near_duplicates import signature\n"
        "print(hashlib.md5(signature(' '.join(map(str, range(10_000)))).tobytes()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment).stdout
    ours = signature(" ".join(map(str, range(10_000))))
    assert told.strip() == hashlib.md5(ours.tobytes()).hexdigest()
    assert (ours.dtype, ours.shape) == (np.uint16, (NUM_HASHES,))
    # one word more than fits one block of shingles changes one element of about ten thousand
    assert np.mean(ours == signature(" ".join(map(str, range(10_001))))) > 0.98


@given(st.lists(st.text(max_size=30), max_size=12))
def test_every_text_is_kept_or_has_a_kept_equal_or_a_kept_neighbour(texts: list[str]):
    if not texts:
        return
    signatures = np.stack([signature(text) for text in texts])
    mask = keep_mask(signatures)
    assert mask[0]
    for index in np.flatnonzero(~mask):
        earlier = np.flatnonzero(mask[:index])
        assert (signatures[earlier] == signatures[index]).mean(axis=1).max() >= 0.8
