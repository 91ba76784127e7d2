"""Checks of rollouts and datasets, row by row: what a trainer would choke on, or would learn wrongly from.

One pass over the file. What is kept of a row is its hash, its length and its keys.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import orjson

from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.jsonl import parse_line, read_lines
from gym_bridge.io.rollout_reader import PLACEHOLDER
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.tokens import Segment
from gym_bridge.tokens.audit.duplicates import DuplicateCheck
from gym_bridge.tokens.audit.findings import AuditReport, Findings, ShownRow
from gym_bridge.tokens.audit.kinds import READERS, kind_of
from gym_bridge.tokens.audit.lengths import RowLengths
from gym_bridge.tokens.audit.null_keys import KeyCheck
from gym_bridge.tokens.audit.row_check import RowCheck
from gym_bridge.tokens.audit.settings import AuditSettings
from gym_bridge.tokens.audit.shown import shown_row
from gym_bridge.tokens.renderers import Renderer


def audit_file(path: Path, renderer: Renderer, settings: AuditSettings) -> AuditReport:
    """Check every row of `path`.

    Raises ConfigError when a file cannot be read or the rows are of no known kind, and DataError for a bad evaluation file.
    """
    audit = _Audit(Path(path), renderer, settings)
    for line, text in read_lines(audit.path):
        audit.take(line, text)
    return audit.report()


class _Audit:
    """The audit of one file, under way."""

    def __init__(self, path: Path, renderer: Renderer, settings: AuditSettings):
        self.path, self.renderer, self.settings = path, renderer, settings
        self.kind: str | None = None
        self.findings = Findings(fail_on=settings.fail_on, allow=settings.allow)
        self.counts: Counter[str] = Counter()
        self.shown: list[ShownRow] = []
        self.rows = RowCheck(path, renderer, settings, self.findings)
        self.duplicates, self.lengths, self.keys = DuplicateCheck(), RowLengths(), KeyCheck()

    def take(self, line: int, text: bytes) -> None:
        """Check one line."""
        self.counts["rows"] += 1
        if text.strip() == PLACEHOLDER:
            self.findings.add(line, "failure", "the line stands for a row left out")
            return
        try:
            self._take_row(line, parse_line(text, path=None))
        except DataError as error:
            self.findings.add(line, "json", str(error))
        except (RecursionError, orjson.JSONEncodeError):
            self.findings.add(line, "json", "objects are nested too deeply for it to be read")

    def report(self) -> AuditReport:
        """What was found, with what only the whole file tells."""
        if self.kind is None:
            raise ConfigError(f"{self.path}: no line is a JSON object; expected rows, one a line")
        for line, message in self.lengths.outliers():
            self.findings.add(line, "length_outlier", message)
        for line, check, message in self.keys.findings():
            self.findings.add(line, check, message)
        lengths = self.lengths.summary()
        return AuditReport(
            kind=self.kind,
            num_rows=self.counts["rows"],
            num_problems=self.findings.num("problem"),
            num_notes=self.findings.num("note"),
            problems=self.findings.kept["problem"],
            notes=self.findings.kept["note"],
            counts=dict(sorted(self.findings.counts.items())),
            num_tokens=self.counts["tokens"],
            num_trained_tokens=self.counts["trained"],
            num_segments=self.rows.num_segments,
            longest=lengths.max if lengths else 0,
            lengths=lengths,
            overlaps=self.rows.overlaps(),
            shown=self.shown,
        )

    def _take_row(self, line: int, row: Row) -> None:
        kind = kind_of(row)
        if self.kind is None:
            if kind is None:
                columns = ", ".join(sorted(row)) or "none"
                raise ConfigError(
                    f"{self.path}:{line}: rows with the columns {columns} are no rollouts and no tasks, response, sft, dpo or "
                    "preference rows"
                )
            self.kind = kind
        if (first := self.duplicates.first_line(line, row)) is not None:
            self.findings.add(line, "duplicate", f"the row of line {first} once more")
        if self.kind in READERS:
            self.keys.add(line, row)
        elif kind != self.kind:
            self.findings.add(line, "columns", f"the row is of kind {kind or 'unknown'}; the first row is of kind {self.kind}")
            return
        self._count(line, self.rows.segments(line, row, self.kind))

    def _count(self, line: int, segments: Sequence[Segment]) -> None:
        if not segments:
            return
        longest = max(len(one.token_ids) for one in segments)
        self.lengths.add(line, longest)
        self.counts["tokens"] += sum(len(one.token_ids) for one in segments)
        self.counts["trained"] += sum(int(one.completion_mask.sum()) for one in segments)
        most = self.settings.max_length
        if most is not None and longest > most:
            self.findings.add(line, "max_length", f"{longest} tokens; --max-length is {most}")
        if len(self.shown) < self.settings.show:
            self.shown.append(shown_row(line, segments, self.renderer))
