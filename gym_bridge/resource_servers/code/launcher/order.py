"""What the caller asks of the launcher, what comes back, and how both cross a socket."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from gym_bridge.resource_servers.code.limits import Limits

EndedBy = Literal["exit", "signal", "wall_time", "cpu_time", "memory", "disk", "output"]

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One run."""

    command: tuple[str, ...]
    """Nothing is executed when empty: the layers alone are tried."""
    readable: tuple[str, ...]
    """Paths that the program may read, none inside another."""
    limits: Limits
    layers: tuple[str, ...] | None
    """Layers that must hold; None: try all of them."""
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Placed in its directory, executable, by plain name."""
    stdin: bytes = b""
    fetch: str | None = None
    """A file of its directory to bring back when it has exited with 0."""
    bounds_address_space: bool = True
    """False bounds its writable data instead, for runtimes that reserve far more addresses than they use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the run went; `error` when it did not take place."""

    error: str | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Layers that failed, and why, for an order that tries all."""
    ended_by: EndedBy = "exit"
    exit_code: int | None = None
    signal: int | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    stdout: bytes = b""
    stderr: bytes = b""
    result: bytes = b""
    """What it wrote to descriptor 3."""
    fetched: bytes | None = None


def pack_order(order: Order) -> bytes:
    """An order as bytes: a JSON header, then its files and stdin as they are."""
    header = {name: getattr(order, name) for name in _plain(Order, without=("limits", "files", "stdin"))}
    blobs = {**{f"file {name}": content for name, content in order.files.items()}, "stdin": order.stdin}
    return _pack(header | {"limits": asdict(order.limits)}, blobs)


def unpack_order(data: bytes) -> Order:
    """The order that `pack_order` wrote."""
    header, blobs = _unpack(data)
    stdin = blobs.pop("stdin")
    files = {name.removeprefix("file "): content for name, content in blobs.items()}
    header["command"], header["readable"] = tuple(header["command"]), tuple(header["readable"])
    header["layers"] = None if header["layers"] is None else tuple(header["layers"])
    header["limits"] = Limits(**header["limits"])
    return Order(**header, files=files, stdin=stdin)


def pack_report(report: Report) -> bytes:
    """A report as bytes."""
    names = ("stdout", "stderr", "result", "fetched")
    blobs = {name: content for name in names if (content := getattr(report, name)) is not None}
    return _pack({name: getattr(report, name) for name in _plain(Report, without=names)}, blobs)


def unpack_report(data: bytes) -> Report:
    """The report that `pack_report` wrote."""
    header, blobs = _unpack(data)
    header.update(blobs)
    return Report(**header)


def message_length(head: bytes | bytearray) -> int:
    """Length of the message whose first 8 bytes are `head`, those included."""
    return int.from_bytes(head[:_LENGTH_BYTES], "big")


def _plain(kind: type, *, without: tuple[str, ...]) -> list[str]:
    return [one.name for one in fields(kind) if one.name not in without]


def _pack(header: Mapping[str, Any], blobs: Mapping[str, bytes]) -> bytes:
    text = json.dumps([header, [[name, len(content)] for name, content in blobs.items()]]).encode()
    body = b"".join([len(text).to_bytes(_LENGTH_BYTES, "big"), text, *blobs.values()])
    return (len(body) + _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big") + body


def _unpack(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    start = 2 * _LENGTH_BYTES
    end = start + int.from_bytes(data[_LENGTH_BYTES:start], "big")
    header, sizes = json.loads(data[start:end])
    blobs: dict[str, bytes] = {}
    for name, size in sizes:
        blobs[name] = data[end : end + size]
        end += size
    return header, blobs
