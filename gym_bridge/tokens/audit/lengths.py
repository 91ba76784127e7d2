"""Lengths of rows: their distribution, and those far from the others. Eight bytes a row are kept."""

from array import array
from collections.abc import Iterator

import numpy as np

from gym_bridge.tokens.audit.findings import Lengths

MIN_ROWS = 8  # fewer tell nothing about what is usual


class RowLengths:
    """Takes in how long each row is, in tokens."""

    def __init__(self):
        self._lines, self._lengths = array("L"), array("L")

    def add(self, line: int, length: int) -> None:
        """One row's longest sequence."""
        self._lines.append(line)
        self._lengths.append(length)

    def summary(self) -> Lengths | None:
        """The distribution; None without rows. A percentile is a length that occurs."""
        if not self._lengths:
            return None
        p50, p95, p99, longest = self._percentiles(50, 95, 99, 100)
        return Lengths(p50=p50, p95=p95, p99=p99, max=longest)

    def outliers(self) -> Iterator[tuple[int, str]]:
        """Line and message of each row far out, the farthest first.

        Far out is beyond the quartiles by three times their distance (Tukey, Exploratory Data Analysis, 1977, section 2D), and
        at least twice, or at most half, the median: many datasets hardly vary, and a few tokens are no outlier.
        """
        if len(self._lengths) < MIN_ROWS:
            return
        low, median, high = self._percentiles(25, 50, 75)
        longest, shortest = max(high + 3 * (high - low), 2 * median), min(low - 3 * (high - low), median / 2)
        lengths = np.array(self._lengths, dtype=np.int64)
        far = np.flatnonzero((lengths > longest) | (lengths < shortest))
        for index in far[np.argsort(-np.abs(lengths[far] - median), kind="stable")].tolist():
            yield self._lines[index], f"{self._lengths[index]} tokens, where the median row has {median}"

    def _percentiles(self, *ranks: int) -> list[int]:
        found = np.percentile(np.array(self._lengths, dtype=np.int64), ranks, method="inverted_cdf")
        return [int(one) for one in found]
