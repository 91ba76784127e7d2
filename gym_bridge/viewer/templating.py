"""Templates with what they may call; everything that is not marked as safe is escaped."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gym_bridge.io.charts import Curve, figure, number_text
from gym_bridge.viewer.shown import one_line, plain, shown

HERE = Path(__file__).parent
MINUTE, HOUR = 60, 3600


@cache
def environment() -> Environment:
    """The templates of the viewer."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "shown": shown,
        "one_line": one_line,
        "plain": plain,
        "number": number,
        "seconds": seconds,
        "chart": chart,
        "token": token,
    }
    return made


def render(template: str, context: dict[str, Any]) -> str:
    """A page as text, to be written as UTF-8."""
    return environment().get_template(template).render(context)


def asset(name: str) -> str:
    """A file that pages fetch."""
    return (HERE / "assets" / name).read_text(encoding="utf-8")


def number(value: float) -> str:
    """As charts write it."""
    return number_text(value)


def seconds(value: float) -> str:
    """`0.42 s`, `3 min 5 s`, `2 h 4 min`."""
    if value < MINUTE:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    if value < HOUR:
        return f"{int(value // MINUTE)} min {int(value % MINUTE)} s"
    return f"{int(value // HOUR)} h {int(value % HOUR // MINUTE)} min"


def chart(curve: Curve) -> Markup:
    """The card of a chart, which escapes what it shows itself."""
    return Markup(figure(curve))


def token(text: str) -> Markup:
    """A token's text: line ends are seen, and end the line."""
    if not text:
        return Markup('<i class="mark">·</i>')
    return (
        Markup("\n").join(shown(part) + Markup('<i class="mark">↵</i>') for part in text.split("\n")[:-1])
        + (Markup("\n") if "\n" in text else Markup(""))
        + shown(text.split("\n")[-1])
    )
