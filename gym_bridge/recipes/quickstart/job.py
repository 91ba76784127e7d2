"""The quickstart's commands, run one after the other as a user would type them; each one's results are read from its files."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.recipes.children import check_ended, run_command, shown
from gym_bridge.resource_servers.process import ServerProcess

SHIPPED_ROLLOUTS = Path(__file__).with_name("nemo_gym_rollouts.jsonl")
MODEL = "smollm2-135m"
SERVER = "arithmetic"
NUM_HELDOUT, NUM_TRAIN, NUM_COLLECTED = 200, 512, 64
SAMPLING = ("--max-output-tokens", "24", "--compute-dtype", "float32")
TOOL_SAMPLING = ("--max-output-tokens", "64", "--compute-dtype", "float32", "--temperature", "0.3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command of the job."""

    name: str
    argv: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a quickstart has done so far; kept on disk, so that a second call goes on where the first stopped."""

    seed: int
    control: bool
    ports: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of every finished stage by its name."""
    finished: bool = False


@dataclass(slots=True, kw_only=True)
class Quickstart:
    """A run of the quickstart in its directory."""

    directory: Path
    progress: Progress

    def run(self, say: Callable[[str], None]) -> None:
        """Run every stage that is not done yet. Raises PolicyError when a command fails, KeyboardInterrupt on Ctrl-C."""
        with self._server("true", say) as url, self._training_server(url, say) as training_url:
            for stage in stages(self.directory, seed=self.progress.seed, url=url, training_url=training_url):
                if stage.name not in self.progress.seconds:
                    self.progress.seconds[stage.name] = _run(stage, say)
                    self._save()
        self.progress.finished = True

    def finish(self) -> None:
        """Note that the run is whole, so that the next quickstart makes a new one."""
        self._save()

    @contextmanager
    def _training_server(self, url: str, say: Callable[[str], None]) -> Iterator[str]:
        if not self.progress.control:
            yield url
            return
        with self._server("shuffled", say, "--shuffle-rewards") as shuffled:
            yield shuffled

    @contextmanager
    def _server(self, name: str, say: Callable[[str], None], *argv: str) -> Iterator[str]:
        with ServerProcess(SERVER, argv, port=self.progress.ports.get(name, 0)) as server:
            port = int(server.url.rpartition(":")[2])
            say(f"$ {shlex.join(['gym-bridge', 'serve', SERVER, '--port', str(port), *argv])} &")
            self.progress.ports[name] = port
            self._save()
            yield server.url

    def _save(self) -> None:
        with written_aside(self.directory / "quickstart.json") as file:
            values = {name: getattr(self.progress, name) for name in Progress.__slots__}
            file.write(json.dumps(values, indent=2).encode())


def open_quickstart(output: Path, *, seed: int, control: bool) -> Quickstart:
    """The unfinished run of the same seed under `output`, else a new one, numbered after the last. Raises ConfigError."""
    number = 1
    while (directory := output / f"quickstart-{number:03d}").exists():
        progress = _read_progress(directory)
        if progress is not None and not progress.finished and (progress.seed, progress.control) == (seed, control):
            return Quickstart(directory=directory, progress=progress)
        number += 1
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {error.strerror}") from error
    return Quickstart(directory=directory, progress=Progress(seed=seed, control=control))


def stages(run: Path, *, seed: int, url: str, training_url: str) -> list[Stage]:
    """Every command, in order. `url` verifies; `training_url` is another address when its rewards are shuffled."""
    tasks = ("tasks", SERVER, "--seed", str(seed))
    heldout, train, rollouts = f"{run}/heldout.jsonl", f"{run}/train.jsonl", f"{run}/rollouts.jsonl"
    common = ("--seed", str(seed))

    def evaluation(name: str, model: str) -> Stage:
        where = ("--input", heldout, "--output", f"{run}/eval_{name}.jsonl", "--server", url, "--model", model)
        return Stage(name=f"eval {name}", argv=("eval", *where, "--num-repeats", "2", *SAMPLING, *common))

    def training(name: str, verb: str, data: str, *more: str) -> Stage:
        argv = ("train", verb, "--config", f"quickstart/{name}", f"data.train={data}", f"trainer.output={run}/{name}")
        return Stage(name=f"train {name}", argv=(*argv, f"trainer.seed={seed}", *more))

    played = ("--server", training_url, "--model", MODEL, "--num-repeats", "4", *common)
    limited = ("--limit", str(NUM_COLLECTED))
    honest = ("--server", url, "--model", MODEL, "--num-repeats", "4", *common)
    tool_tasks, tool_rollouts = f"{run}/tool_tasks.jsonl", f"{run}/tool_rollouts.jsonl"
    return [
        Stage(name="tasks heldout", argv=(*tasks, "--num-tasks", str(NUM_HELDOUT), "--split", "heldout", "--output", heldout)),
        Stage(name="tasks train", argv=(*tasks, "--num-tasks", str(NUM_TRAIN), "--split", "train", "--output", train)),
        evaluation("before", MODEL),
        Stage(name="collect", argv=("collect", "--input", train, "--output", rollouts, *played, *SAMPLING, *limited)),
        *_transforms(rollouts, run, ""),
        training("sft", "sft", f"{run}/sft.jsonl"),
        evaluation("after_sft", f"{run}/sft"),
        training("grpo", "grpo", train, f"policy.model={run}/sft", f"env.server={training_url}"),
        evaluation("after_grpo", f"{run}/grpo"),
        Stage(name="compare", argv=("eval", "compare", f"{run}/eval_before.jsonl", f"{run}/eval_after_grpo.jsonl")),
        *_transforms(str(SHIPPED_ROLLOUTS), run, "nemo_gym_"),
        training("nemo_gym_sft", "sft", f"{run}/nemo_gym_sft.jsonl"),
        Stage(name="tool tasks", argv=(*tasks, "kind=tool", "--num-tasks", "8", "--output", tool_tasks)),
        Stage(name="tool collect", argv=("collect", "--input", tool_tasks, "--output", tool_rollouts, *honest, *TOOL_SAMPLING)),
        Stage(name="tool audit", argv=("audit", tool_rollouts, "--model", MODEL)),
        Stage(name="tool transform", argv=("transform", tool_rollouts, "--to", "sft", "--output", f"{run}/tool_sft_rows.jsonl")),
        Stage(name="tool masks", argv=("audit", f"{run}/tool_sft_rows.jsonl", "--model", MODEL, "--show", "1")),
        training("tool_sft", "sft", f"{run}/tool_sft_rows.jsonl"),
    ]


def _transforms(rollouts: str, run: Path, prefix: str) -> list[Stage]:
    """The rollouts in every format, each audited."""
    found: list[Stage] = []
    for form in ("response", "sft", "dpo"):
        output, report = f"{run}/{prefix}{form}.jsonl", f"{run}/{prefix}{form}_report.json"
        argv = ("transform", rollouts, "--to", form, "--output", output, "--report", report)
        found.append(Stage(name=f"{prefix}transform {form}", argv=argv))
        found.append(Stage(name=f"{prefix}audit {form}", argv=("audit", output, "--model", MODEL)))
    return found


def _run(stage: Stage, say: Callable[[str], None]) -> float:
    """Run the stage's command as printed; returns its seconds."""
    ended = run_command(stage.argv, say)
    check_ended(ended, shown(stage.argv), again="`gym-bridge quickstart`")
    return ended.seconds


def _read_progress(directory: Path) -> Progress | None:
    try:
        return Progress(**json.loads((directory / "quickstart.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
