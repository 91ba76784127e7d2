"""How far a transform has come. Inputs that are read within seconds tell nothing."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Self

from gym_bridge.io.blocks import Source
from gym_bridge.io.progress import Progress
from gym_bridge.transforms.converting import Converted

TOLD_FROM_BYTES = 1 << 28


class Teller:
    """Shows progress on stderr while results pass through. A `with` block ends what is shown."""

    def __init__(self, sources: Sequence[Source], *, quiet: bool):
        num_bytes = sum(source.place.stat().st_size for source in sources)
        self._quiet = quiet or num_bytes < TOLD_FROM_BYTES
        plain = all(source.compression is None for source in sources)
        self._num_mib = num_bytes >> 20 if plain else None
        self._shown = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.close()

    def reading(self, results: Iterable[Converted]) -> Iterator[Converted]:
        """The results of blocks, as they come."""
        progress, num_bytes, num_rows = self._begun("transform: MiB read", self._num_mib), 0, 0
        for one in results:
            num_bytes, num_rows = num_bytes + one.num_bytes, num_rows + one.rows_in
            progress.advance({"rows": num_rows}, count=(num_bytes >> 20) - progress.done)
            yield one

    def writing(self, results: Iterable[Converted], *, total: int) -> Iterator[Converted]:
        """The results of the chosen rollouts, as they come; `total` rows there will be."""
        progress = self._begun("transform: rows written", total)
        for one in results:
            progress.advance({}, count=one.num_rows)
            yield one

    def _begun(self, title: str, total: int | None) -> Progress:
        self._shown.close()
        return self._shown.enter_context(Progress(title, total=total, quiet=self._quiet))
