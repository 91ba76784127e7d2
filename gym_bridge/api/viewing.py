"""Runs and rollouts on a local web page, or on one page to share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.io.remote_files import fetched_rows
from gym_bridge.schemas.remote_names import mirrored, url_of

if TYPE_CHECKING:
    from gym_bridge.tokens.tokenizer import Tokenizer

PAGES = (".html", ".htm")


async def view(
    paths: Sequence[Path | str],
    *,
    port: int = 0,
    model: str | None = None,
    on_ready: Callable[[str], None],
    quiet: bool = True,
) -> None:
    """Show runs, directories and rollouts files on `port` of the loopback (0: any free one) until cancelled; `on_ready` gets the
    address. `model`: whose tokenizer tells tokens; without it each file's own is looked for.

    Raises ConfigError for a path without runs and rollouts, and for a port that is taken.
    """
    from gym_bridge.viewer.library import Library
    from gym_bridge.viewer.serving import serve

    with Library(_here(paths), quiet=quiet) as library:
        for file in library.files:
            file.look()
        await serve(library, port=port, on_ready=on_ready, tokenizer=_tokenizer(model))


def export_page(paths: Sequence[Path | str], output: Path, *, quiet: bool = True) -> None:
    """Write runs and rollouts as one HTML page that opens from disk. Raises ConfigError as `view` does, and for an `output` that
    is not named as a page."""
    from gym_bridge.viewer.library import Library
    from gym_bridge.viewer.shared_page import shared_page

    if output.suffix not in PAGES or output.is_dir():
        raise ConfigError(f"{output}: the page takes the place of this file; name a file that ends with .html")
    with Library(_here(paths), quiet=quiet) as library:
        title = ", ".join(Path(path).name for path in paths)
        page = shared_page(library, title=title)
    with written_aside(output) as file:
        file.write(page.encode("utf-8", "replace"))


def _here(paths: Sequence[Path | str]) -> list[Path]:
    """Files behind URLs are fetched; what lies here is opened where it is."""
    found: list[Path] = []
    for path in map(mirrored, paths):
        found += [path] if url_of(path) is None else fetched_rows([path])
    return found


def _tokenizer(model: str | None) -> "Tokenizer | None":
    if model is None:
        return None
    from gym_bridge.api.models import model_directory
    from gym_bridge.tokens.tokenizer import Tokenizer

    return Tokenizer(model_directory(model))
