"""How weights reach vLLM over a file system that both sides see: as a whole model, or as the adapter alone.

On a CPU, vLLM 0.32 keeps a packed copy of an output head that is tied to the input embedding, and makes it anew only when weights
of the head's own name come: else the head would stay as it was. So they are written under both names, see `TiedHead`.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gym_bridge.errors import PolicyError
from gym_bridge.policy.exporting import read_weights, weight_files
from gym_bridge.policy.samplers.vllm_control import ReplicaControl

READABLE = 0o644  # safetensors writes files that only their owner may read; a server may run as another user


@dataclass(frozen=True, slots=True)
class TiedHead:
    """Names of an output head's weight and of the input embedding's, which are one tensor."""

    head: str
    embedding: str


class Transfer(Protocol):
    """One way for weights to reach a server: laid out once, then delivered to each."""

    @property
    def adapter(self) -> str | None:
        """What a request names; None: the model itself."""
        ...

    @property
    def sleep_level(self) -> int:
        """How deep a server may sleep: 2 where every delivery brings whole weights."""
        ...

    @property
    def from_any_thread(self) -> bool:
        """Whether a delivery can be made again while the trainer computes."""
        ...

    def lay_out(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Make weights ready. Raises PolicyError."""
        ...

    def deliver(self, control: ReplicaControl, *, whole: bool) -> None:
        """Bring what was laid out last to a server that holds its requests. `whole`: nothing of it is there yet.

        Raises ReplicaError.
        """
        ...

    def settle(self) -> None:
        """Told when all servers that can be reached have what was laid out last."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class DiskTransfer:
    """A safetensors file in a directory of its version, which each server reads. Older ones are removed."""

    adapter = None
    sleep_level = 2
    from_any_thread = True

    def __init__(self, directory: Path, *, tied: TiedHead | None = None):
        """`directory` is seen by the servers under the same path, and is this process's alone."""
        self._versions, self._tied = _Versions(directory), tied

    def lay_out(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write the weights in the dtypes that they have."""
        with self._versions.new(version) as aside:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
            if self._tied is not None and self._tied.head not in tensors:
                tensors[self._tied.head] = tensors[self._tied.embedding].clone()
            save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})

    def deliver(self, control: ReplicaControl, *, whole: bool) -> None:
        """Let the server load the directory."""
        control.reload(str(self._versions.last))

    def settle(self) -> None:
        """Remove older versions."""
        self._versions.keep_last()

    def close(self) -> None:
        """Remove the directory."""
        self._versions.remove()


class AdapterTransfer:
    """The adapter alone, in a directory of its version; a server that is new here first loads the base model from its files.

    vLLM computes adapters in its own dtype, beside a base model that it keeps.
    """

    adapter = "gym-bridge-policy"
    sleep_level = 1
    from_any_thread = True

    def __init__(self, directory: Path, *, base: Path, save: Callable[[Path], None], tied: TiedHead | None = None):
        """`save` writes the adapter, of peft's layout, to an empty directory; `base` is the model that it was made for.

        Raises PolicyError when the disk refuses.
        """
        self._directory, self._save = directory, save
        self._versions = _Versions(directory / "adapters")
        self._base = base.resolve() if tied is None else _base_with_head(base, directory.resolve() / "base", tied)

    def lay_out(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write the adapter; `weights`, which hold it merged, are not looked at."""
        with self._versions.new(version) as aside:
            self._save(aside)

    def deliver(self, control: ReplicaControl, *, whole: bool) -> None:
        """Let the server load the adapter, and before it the base model where it may have another."""
        if whole:
            control.reload(str(self._base))
        control.load_adapter(self.adapter, str(self._versions.last))

    def settle(self) -> None:
        """Remove older versions."""
        self._versions.keep_last()

    def close(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)


class _Versions:
    """Directories of single versions, each under a name that was never there before: no server can take an old one for it."""

    def __init__(self, directory: Path):
        self._directory = directory.resolve()
        self._count = 0
        self.last = self._directory

    @contextmanager
    def new(self, version: int) -> Iterator[Path]:
        """An empty directory that becomes `last` when the block ends well. Not synced to disk: a new start writes it again."""
        self._count += 1
        path = self._directory / f"version_{version:08d}_{self._count}"
        aside = path.with_name(f".{path.name}.saving")
        try:
            aside.mkdir(parents=True)
            yield aside
            for file in aside.iterdir():
                file.chmod(READABLE)
            aside.rename(path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise PolicyError(f"cannot write weights for vLLM to {path}: {getattr(error, 'strerror', None) or error}") from error
        self.last = path

    def keep_last(self) -> None:
        """Remove all but the last."""
        for path in self._directory.iterdir():
            if path != self.last:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self._directory, ignore_errors=True)


def _base_with_head(base: Path, directory: Path, tied: TiedHead) -> Path:
    """A directory of the base model's weights, in which the head's stand under its own name too."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for file in weight_files(base):
            (directory / file.name).symlink_to(file.resolve())
        weights = dict(one for one in read_weights(base) if one[0] in (tied.head, tied.embedding))
        if tied.head not in weights:
            file = directory / "tied_head.safetensors"
            save_file({tied.head: weights[tied.embedding]}, file, metadata={"format": "pt"})
            file.chmod(READABLE)
    except (OSError, SafetensorError) as error:
        raise PolicyError(f"cannot write {directory}: {getattr(error, 'strerror', None) or error}") from error
    return directory
