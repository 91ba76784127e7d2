"""`R_manifest.json`: what a collection is, so that a second command can tell whether it is the same."""

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.schemas.rollouts import Ledger
from gym_bridge.version import __version__


class CollectionManifest:
    """`{"identity": ..., "versions": ..., "met": ..., "ledger": ...}`.

    `met` is what only a running server could tell; the ledger is there once a run has ended well.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """The manifest; None when there is none. Raises ConfigError for a file that is something else."""
        try:
            found = orjson.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
            raise ConfigError(f"{self.path} is no manifest of a collection; choose another --output or pass --overwrite")
        return found

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """What `identity` has otherwise than the manifest, one line each; empty without a manifest. Raises as `read` does."""
        found = self.read()
        if found is None:
            return []
        before, now = found["identity"], _as_json(identity)
        differing = sorted(key for key in before | now if before.get(key) != now.get(key))
        return [f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differing]

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write the manifest of a collection that goes on: its ledger is open again. Raises ConfigError."""
        found = self.read()
        if found is None or "ledger" in found:
            kept = {name: found[name] for name in ("versions", "met") if name in found} if found else {}
            self._write({"identity": _as_json(identity), "versions": _versions(), **kept})

    def meet(self, met: Mapping[str, str]) -> list[str]:
        """Keep what servers are, by address; the addresses at which an earlier run met something else. Raises ConfigError."""
        found = self.read() or {}
        before: dict[str, str] = found.get("met") or {}
        changed = [name for name, digest in met.items() if before.get(name, digest) != digest]
        if not changed and met.keys() - before.keys():
            self._write({**found, "met": {**before, **met}})
        return changed

    def end(self, ledger: Ledger) -> None:
        """Add how the requested rollouts ended. Raises ConfigError."""
        self._write({**(self.read() or {}), "ledger": dataclasses.asdict(ledger)})

    def _write(self, content: dict[str, Any]) -> None:
        with written_aside(self.path) as file:
            file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it will read back: tuples are lists then."""
    return orjson.loads(orjson.dumps(dict(identity)))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "gym-bridge": __version__}
