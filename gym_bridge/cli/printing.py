"""What verbs print on stdout."""

from collections.abc import Sequence
from typing import Any

import click
import orjson


def print_json(value: Any) -> None:
    """`value` as indented JSON."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str).decode())


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of text, every column but the last as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]))
