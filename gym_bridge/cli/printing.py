"""What verbs print on stdout."""

from typing import Any

import click
import orjson


def print_json(value: Any) -> None:
    """`value` as indented JSON."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str).decode())
