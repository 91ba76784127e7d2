"""A reader's shell: runs the blocks of a page in order, with real servers beside it."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.documentation.pages import Block, bash_blocks, blocks_of
from tests.documentation.substitutions import script_of

PATIENCE_S = 240.0
TAIL = 40
PORT = re.compile(r"(?<=127\.0\.0\.1:)\d{4,5}\b|(?<=port )\d{4,5}\b")
SERVERS = {
    "9000": "gym-bridge serve arithmetic",
    "8000": "gym-bridge serve model smollm2-135m",
}
"""By the port on which the pages speak to them."""
PRELUDE = """
await_port() {
    { set +x; } 2> /dev/null
    for _ in $(seq 600); do
        (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null && { set -x; return; }
        kill -0 "$2" 2> /dev/null || { echo "process $2 ended before it listened on port $1" >&2; return 1; }
        sleep 0.1
    done
    echo "nothing listens on port $1" >&2; return 1
}
until_ready() {
    { set +x; } 2> /dev/null
    local told; told="$(mktemp)"
    "$@" > "$told" &
    for _ in $(seq 600); do
        grep -q http:// "$told" && { kill $!; wait $!; set -x; return; }
        kill -0 $! 2> /dev/null || { wait $!; return; }
        sleep 0.1
    done
    echo "it has told no address" >&2; return 1
}
"""


@dataclass(frozen=True, slots=True)
class Failure(Exception):
    """A block that did not end with exit code 0."""

    block: Block
    code: int | str
    output: str

    def __str__(self) -> str:
        tail = "\n".join(self.output.splitlines()[-TAIL:])
        return f"{self.block.place}: exit code {self.code}\n\n{self.block.text}\n\n{tail}"


class Session:
    """Runs blocks one after the other. What one leaves in the background goes on until `close`."""

    def __init__(self, shop: Path, directory: Path, environment: Mapping[str, str]):
        """`shop` is where models and settings lie that the substitutions name; `directory` is the reader's."""
        self.shop, self.directory, self.environment = shop, directory, environment
        self._ports: dict[str, str] = {}
        self._groups: list[int] = []

    def run(self, block: Block) -> str:
        """What the block printed. Raises Failure."""
        return self._bash(block, script_of(block, place=self._place))

    def serve(self, port: str, command: str) -> None:
        """Start a server that the pages assume on `port`."""
        self.run(Block(page=Path("workshop"), line=0, language="bash", text=f"{command} --port {port}"))

    def play(self, page: Path) -> None:
        """Write the files that a page shows, start the servers that it does not start itself, and run its blocks."""
        for block in blocks_of(page):
            if block.file_name:
                (self.directory / block.file_name).write_text(block.text + "\n", encoding="utf-8")
        text = "\n".join(block.text for block in bash_blocks(page))
        for port, command in SERVERS.items():
            if f"127.0.0.1:{port}" in text and f"--port {port}" not in text:
                self.serve(port, command)
        for block in bash_blocks(page):
            self.run(block)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process that a block left behind."""
        for group in self._groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _place(self, command: str) -> str:
        """`command` with real directories, and with ports that are free on this machine."""
        return PORT.sub(lambda found: self._free_port(found.group()), command.replace("$SHOP", str(self.shop)))

    def _free_port(self, named: str) -> str:
        if named not in self._ports:
            with socket.socket() as opened:
                opened.bind(("127.0.0.1", 0))
                self._ports[named] = str(opened.getsockname()[1])
        return self._ports[named]

    def _bash(self, block: Block, script: str) -> str:
        log = self.directory.with_name(f"{self.directory.name}_{len(self._groups)}.log")
        with log.open("w") as opened:
            process = subprocess.Popen(
                ["bash", "-xeuo", "pipefail", "-c", PRELUDE + script],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._groups.append(process.pid)
            try:
                code: int | str = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                code = f"none after {PATIENCE_S:.0f} s"
        output = log.read_text(errors="replace")
        if code != 0:
            raise Failure(block, code, output)
        return output
