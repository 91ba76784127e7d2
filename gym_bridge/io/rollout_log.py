"""The durable log of a collection: `R.jsonl`, `R_failures.jsonl`, `R_materialized_inputs.jsonl`, `R_manifest.json`, `R.tokens/`.

Append-only. Rows are gathered until SYNC_ROWS of them wait, or one comes SYNC_S seconds after the last sync; then their tokens
are synced, then the rows themselves. A torn last line, left by a kill, is cut when the log is opened again; what a full disk
refuses is taken back at once and waits in memory. One process at a time writes a log: `R.jsonl` is locked while it is open.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gym_bridge.errors import ConfigError
from gym_bridge.io.appended_file import AppendedFile
from gym_bridge.io.collection_manifest import CollectionManifest
from gym_bridge.io.jsonl import dump_line, parse_line, read_lines, write_jsonl
from gym_bridge.io.log_replay import replay
from gym_bridge.io.outcomes import Outcomes
from gym_bridge.io.token_store import PackedTurns, TokenStore, pack_turns
from gym_bridge.schemas.rollouts import Ledger, Rollout, RolloutKey, Row

SYNC_S = 1.0
SYNC_ROWS = 64


def sibling(output: Path, suffix: str) -> Path:
    """The file that belongs to the rollouts file `output`: sibling("x/R.jsonl", "_failures.jsonl") is x/R_failures.jsonl."""
    return output.with_name(output.stem + suffix)


def log_files(output: Path) -> list[Path]:
    """The rollouts file `output` and its siblings of a collection."""
    return [*(sibling(output, suffix) for suffix in ("_failures.jsonl", "_materialized_inputs.jsonl", "_manifest.json")), output]


def tokens_of(output: Path) -> Path:
    """The directory of the token ids of a rollouts file."""
    return output.with_name(output.stem + ".tokens")


class RolloutLog:
    """Writes finished rollouts and knows which ones an earlier run of the same command finished.

    A context manager: the block's end closes the log.
    """

    def __init__(self, output: Path, *, identity: Mapping[str, Any], overwrite: bool = False, adopt: bool = False):
        """Open or begin the log. `identity` holds what must not change between runs: tasks digest, model, server, settings.

        `overwrite` discards what is there; `adopt` takes over a collection that NeMo Gym's `ng_collect_rollouts` began. Raises
        ConfigError when the log on disk has another identity or another writer, or cannot be written, DataError for a line of
        it that is no row.
        """
        if overwrite and adopt:
            raise ConfigError("--overwrite discards what --adopt would take over; pass one of them")
        self.output = output
        self.failures = sibling(output, "_failures.jsonl")
        self.inputs = sibling(output, "_materialized_inputs.jsonl")
        self.tokens = TokenStore(tokens_of(output))
        self.outcomes = Outcomes()
        """`completed`, `truncated` or the failure type of every rollout in the log."""
        self._manifest = CollectionManifest(sibling(output, "_manifest.json"))
        self._rows_file = AppendedFile(output)
        self._failures_file = AppendedFile(self.failures)
        self._waiting_tokens: list[PackedTurns] = []
        self._num_waiting = 0
        self._synced_at = time.monotonic()
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            if not overwrite:
                self._refuse_foreign(adopt=adopt)
            self._rows_file.open(exclusive=True)
            try:
                self._open(identity, overwrite=overwrite)
            except BaseException:
                self._release()
                raise
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error.strerror}") from error

    def __enter__(self) -> "RolloutLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def mean_reward(self) -> float:
        """Over all rollouts that have a reward, of earlier runs too; NaN while there is none."""
        return self.outcomes.mean_reward

    @property
    def num_with_reward(self) -> int:
        """Rollouts that have a reward, of earlier runs too."""
        return self.outcomes.num_with_reward

    def append(self, rollout: Rollout) -> None:
        """Take one finished rollout; it is on disk after the next sync. One that brings its `line` has it written as it is.

        Raises ConfigError as `sync` does: the rollout is kept all the same, to be written by the next sync. Raises
        AssertionError for a rollout that has its row already, which no collector may play.
        """
        self.append_group((rollout,))

    def append_group(self, rollouts: Sequence[Rollout]) -> None:
        """Take rollouts that belong together: their rows are written at once. Raises as `append` does."""
        for rollout in rollouts:
            self._take(rollout)
        if self._num_waiting >= SYNC_ROWS or time.monotonic() - self._synced_at > SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Bring everything taken so far to the disk.

        Raises ConfigError when the disk refuses, a full one above all. What was not written waits still: sync again once there
        is room.
        """
        try:
            if self._waiting_tokens:
                self.tokens.append_packed(self._waiting_tokens)
                self._waiting_tokens = []
            self._rows_file.sync()
            self._failures_file.sync()
        except OSError as error:
            raise ConfigError(f"cannot write {self.output}: {error.strerror}; what was synced before is whole") from error
        self._num_waiting = 0
        self._synced_at = time.monotonic()

    def close(self, ledger: Ledger | None = None) -> None:
        """Sync, note the ledger of the collection in the manifest, and let others write the log. A second call does nothing.

        Raises ConfigError as `sync` does; the log is closed all the same.
        """
        if self._rows_file.closed:
            return
        try:
            self.sync()
            if ledger is not None:
                self._manifest.end(ledger)
        finally:
            self._release()

    def write_inputs(self, rows: Iterable[Row]) -> None:
        """Write the rows to be played, as NeMo Gym does, unless an earlier run did."""
        if not self.inputs.exists():
            write_jsonl(self.inputs, rows)

    def meet_servers(self, descriptions: Mapping[str, str]) -> None:
        """Note the digests of what servers say of themselves, by address.

        Raises ConfigError for a server that is another one than the collection has rollouts of.
        """
        if changed := self._manifest.meet(descriptions):
            raise ConfigError(
                f"{self.output} has rollouts of another server: what {changed[0]} says of itself (/openapi.json) is not what it "
                "was when the collection began; start that server again, choose another --output or pass --overwrite"
            )

    def next_rollout_index(self, task_index: int) -> int:
        """The first rollout index of a task that the log does not hold."""
        return self.outcomes.next_rollout_index(task_index)

    def is_done(self, key: RolloutKey) -> bool:
        """True when the log holds the rollout with a reward."""
        return self.outcomes.is_done(key)

    def is_terminal(self, key: RolloutKey) -> bool:
        """True when the rollout failed in a way that another attempt would repeat: it is not to be tried again."""
        return self.outcomes.is_terminal(key)

    def num_failed_attempts(self, key: RolloutKey) -> int:
        """How often the rollout was attempted in vain, in earlier runs too: the number of its next attempt."""
        return self.outcomes.num_failed_attempts(key)

    def ledger(self, requested: Iterable[RolloutKey]) -> Ledger:
        """How the `requested` rollouts ended. They are read once and not held."""
        return self.outcomes.ledger(requested)

    def rows(self) -> Iterable[Row]:
        """The finished rows on disk."""
        for number, line in read_lines(self.output):
            yield parse_line(line, path=self.output, line=number)

    def _open(self, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        if overwrite:
            self._discard()
        if differing := self._manifest.differences(identity):
            if not self._is_empty():
                what = "; ".join(differing)
                raise ConfigError(
                    f"{self.output} was begun by another command ({what}); choose another --output or pass --overwrite"
                )
            self._discard()  # the earlier command stopped before its first rollout: nothing is lost
        self._rows_file.cut_torn_tail()
        if self.failures.exists():
            self._failures_file.open()
            self._failures_file.cut_torn_tail()
        replay(self.output, self.failures, self.outcomes)
        self._manifest.begin(identity)

    def _take(self, rollout: Rollout) -> None:
        """Note a rollout and keep it for the next sync."""
        key, failure = rollout.key, rollout.failure
        if self.outcomes.is_written(key):
            raise AssertionError(f"task {key.task_index}, rollout {key.rollout_index} was played a second time")
        line = dump_line(rollout.row) if rollout.line is None else rollout.line
        if not line.endswith(b"\n"):
            raise AssertionError(f"the line of task {key.task_index}, rollout {key.rollout_index} does not end with a newline")
        if failure is None:
            reward = float(rollout.row["reward"])
            if not math.isfinite(reward):
                raise AssertionError(f"task {key.task_index}, rollout {key.rollout_index} has a reward of {reward}")
            if rollout.turns:
                self._waiting_tokens.append(pack_turns((key.task_index, key.rollout_index, rollout.attempt), rollout.turns))
            self._rows_file.add(line)
            self.outcomes.record_reward(key, reward, truncated=rollout.truncated)
        else:
            self._failures_file.add(line)
            self.outcomes.record_failure(key, str(failure.type), attempt=rollout.attempt, terminal=failure.terminal)
        self._num_waiting += 1

    def _refuse_foreign(self, *, adopt: bool) -> None:
        """Raises ConfigError for files of a log that has no manifest; with `adopt` NeMo Gym's own files may be there."""
        if self._manifest.path.exists():
            return
        files = [] if adopt else [one for one in (self.output, self.failures, self.inputs) if _has_content(one)]
        found = next(iter((*files, *self.tokens.chunks())), None)
        if found is not None:
            ways = "" if adopt else "pass --adopt to take over a collection that NeMo Gym began, "
            raise ConfigError(f"{found} exists and was not begun here; {ways}choose another --output, or --overwrite to discard it")

    def _discard(self) -> None:
        """The manifest goes last: a kill before leaves a log that its own command goes on with."""
        self._rows_file.clear()
        for path in (self.failures, self.inputs):
            path.unlink(missing_ok=True)
        self.tokens.discard()
        self._manifest.path.unlink(missing_ok=True)

    def _is_empty(self) -> bool:
        return not any(_has_content(path) for path in (self.output, self.failures))

    def _release(self) -> None:
        self._failures_file.close()
        self._rows_file.close()


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
