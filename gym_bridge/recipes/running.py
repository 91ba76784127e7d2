"""A recipe run stage by stage in its directory, from where the last call stopped."""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gym_bridge.config import validate
from gym_bridge.errors import UNFIT, ConfigError, DataError, PolicyError
from gym_bridge.evaluation.suite_report import SuiteReport
from gym_bridge.evaluation.summary import Paired
from gym_bridge.io.appended_file import AppendedFile
from gym_bridge.io.jsonl import dump_line, read_jsonl, written_aside
from gym_bridge.recipes.catalogue import find_recipe
from gym_bridge.recipes.children import INTERRUPTED, Ended, check_ended, run_command, shown
from gym_bridge.recipes.notes import check_brought, notes_of
from gym_bridge.recipes.planning import PROGRESS, Plan, Stage, first_model, plan
from gym_bridge.recipes.reading import digests_of
from gym_bridge.recipes.report import REPORTS, RecipeReport, StageReport, write_report

Say = Callable[[str], None]


def run_recipe(name: str, *, config: str = "default", overrides: Sequence[str] = (), quiet: bool = True) -> RecipeReport:
    """Run a recipe, by its name or folder, with one of its configs or a YAML file; the report is written to its directory too.

    What was done before is not done again. Raises ConfigError for settings that are wrong, and as `run_plan`.
    """
    return run_plan(plan(find_recipe(name), config=config, overrides=overrides), lambda text: None, quiet=quiet, to_stderr=True)


def run_plan(planned: Plan, say: Say, *, quiet: bool = False, to_stderr: bool = False) -> RecipeReport:
    """Run what is not done yet, and write the report. `say` hears of every command.

    `quiet`: commands show no progress. `to_stderr`: what they print goes there. Raises ConfigError where a file that the user
    names is not there, where the directory holds another run, or another process is at it, and for a command that a setting or a
    file made fail, PolicyError for one that failed otherwise, KeyboardInterrupt on Ctrl-C.
    """
    check_brought(planned)
    notes = notes_of(planned)
    for note in notes:
        say(f"note: {note}")
    run = RecipeRun(planned, say, quiet=quiet, to_stderr=to_stderr)
    ended = run.run()
    return write_report(planned, ended, notes=[*notes, *run.notes], last_gain=run.last_gain)


class RecipeRun:
    """A recipe in its directory."""

    def __init__(self, planned: Plan, say: Say, *, quiet: bool = False, to_stderr: bool = False):
        self.plan, self.say = planned, say
        self._quiet, self._to_stderr = quiet, to_stderr
        self._file = AppendedFile(planned.output / PROGRESS)
        self._before: dict[str, StageReport] = {}
        self._digests: dict[Path, str] = {}
        self._is_anew = False
        self._ended: list[tuple[Stage, StageReport]] = []
        self.notes: list[str] = []
        """What the rounds came to."""
        self.last_gain: int | None = None if planned.settings.rounds is None else 0
        """The last round that gained something; None where there are no rounds."""

    def run(self) -> list[tuple[Stage, StageReport]]:
        """Run what is not done yet; all that is done, in order. Raises as `run_plan`."""
        if not (self.plan.output / PROGRESS).exists():
            self._refuse_what_others_left()
        try:
            self.plan.output.mkdir(parents=True, exist_ok=True)
            self._file.open(exclusive=True)
        except OSError as error:
            raise ConfigError(f"cannot write {self.plan.output}: {error.strerror}") from error
        try:
            self._file.cut_torn_tail()
            self._before = recorded(self.plan.output)
            self._run(self.plan.stages)
            self._run_rounds()
        finally:
            self._file.close()
        return self._ended

    def _refuse_what_others_left(self) -> None:
        """Raises ConfigError for a file that would be written over, in a directory where no recipe has run yet."""
        reports = (self.plan.output / f"report.{suffix}" for suffix in REPORTS)
        for place in (*reports, *(leaf for stage in self.plan.every_stage() for leaf in stage.command.leaves)):
            if place.exists() and self._is_within(place):
                raise ConfigError(f"{place} is there, and no recipe has run in {self.plan.output}; choose another output")

    def _is_within(self, place: Path) -> bool:
        return place.absolute().is_relative_to(self.plan.output.absolute())

    def _run_rounds(self) -> None:
        if self.plan.settings.rounds is None:
            return
        model = first_model(self.plan.settings)
        for number in range(1, self.plan.settings.rounds.at_most + 1):
            rounds, stages = self.plan.round(number, model=model)
            self._run(stages)
            model = rounds.newest
            gain = gain_of(Path(rounds.gain))
            self.notes.append(f"round {number}: {'; '.join(gain.sentences())}")
            self.say(f"\n{self.notes[-1]}")
            if gain.difference.low <= 0:
                return
            self.last_gain = number

    def _run(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self._check_same(stage)
        for stage in stages:
            if stage.unless_empty is not None and not _has_rows(stage.unless_empty):
                continue
            ended = self._done_before(stage)
            if ended is None:
                self._is_anew = True
                ended = self._run_one(stage)
            self._ended.append((stage, ended))

    def _check_same(self, stage: Stage) -> None:
        """Raises ConfigError where the stage was another command when it was done, or read other files."""
        before = self._standing(stage)
        if before is None:
            return
        told = f"{self.plan.output} holds another run of the recipe"
        if before.command != shown_stage(stage):
            change = f"{stage.name} was `{before.command}` then, and is `{shown_stage(stage)}` now"
            raise ConfigError(f"{told}: {change}; choose another output")
        now = digests_of(stage.command, self.plan.output, self._digests)
        if changed := [path for path, digest in before.read.items() if now.get(path, digest) != digest]:
            raise ConfigError(f"{told}: {changed[0]} has changed since {stage.name} read it; choose another output")

    def _done_before(self, stage: Stage) -> StageReport | None:
        """What an earlier call came to; None where the stage is to be run: for the first time, or after one that was run anew."""
        is_there = not self._is_anew and all(map(Path.exists, stage.command.leaves))
        return self._standing(stage) if is_there else None

    def _standing(self, stage: Stage) -> StageReport | None:
        """What the stage came to before, where it came to its end and no verdict is asked for anew."""
        before = self._before.get(stage.name)
        return None if before is None or not before.done or (before.code == UNFIT and stage.stops_if_unfit) else before

    def _keep_what_others_made(self, stage: Stage) -> None:
        """Raises ConfigError for a file outside of the run's directory that the stage would write over."""
        if stage.command.argv[:1] == ("collect",) or stage.name in self._before:
            return  # a collection goes on with what it began, and refuses the rest itself
        for leaf in stage.command.leaves:
            if leaf.exists() and not self._is_within(leaf):
                told = f"{leaf}: {stage.name} would write over it"
                raise ConfigError(f"{told}; set its parameter on the command line, and it is read instead")

    def _run_one(self, stage: Stage) -> StageReport:
        self._keep_what_others_made(stage)
        command, told = stage.command, shown_stage(stage)
        if command.text is not None:
            self.say(f"\n$ {told}")
            self._write(command.leaves[0], command.text)
            return self._record(stage, Ended(code=0, seconds=0.0, memory_gib=0.0), read={})
        read = digests_of(command, self.plan.output, self._digests)
        argv, started = [*command.argv, *(["--quiet"] if self._quiet else [])], time.monotonic()
        try:
            ended = run_command(argv, self.say, processes=command.processes, to_stderr=self._to_stderr)
        except BaseException:
            self._record(stage, Ended(code=INTERRUPTED, seconds=time.monotonic() - started, memory_gib=0.0), read=read)
            raise
        found = self._record(stage, ended, read=read)
        if ended.code == UNFIT and stage.stops_if_unfit:
            raise PolicyError(
                "the reward is not fit to train on, as told above; mend it, with another output where earlier stages went by it, "
                "or say ignore_broken_reward=true"
            )
        if not found.done:
            check_ended(ended, told, again="the same command")
        return found

    def _record(self, stage: Stage, ended: Ended, *, read: dict[str, str]) -> StageReport:
        """Write down a command's end; what it came to with the calls before that it went on with."""
        one = StageReport(
            stage=stage.name,
            command=shown_stage(stage),
            seconds=ended.seconds,
            memory_gib=ended.memory_gib,
            code=ended.code,
            read=read,
        )
        self._file.add(dump_line(one.model_dump()))
        self._file.sync()
        self._before[stage.name] = one.after(self._before.get(stage.name))
        return self._before[stage.name]

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def shown_stage(stage: Stage) -> str:
    """What the stage does, as a line, or lines, for a shell."""
    command = stage.command
    if command.text is None:
        return shown(command.argv, processes=command.processes)
    (path,) = command.leaves
    return f"mkdir -p {shlex.quote(str(path.parent))} && cat > {shlex.quote(str(path))} <<'END'\n{command.text}END"


def recorded(output: Path) -> dict[str, StageReport]:
    """By stage what its commands in a recipe's directory came to, done or not. Raises DataError for lines that are none."""
    path = output / PROGRESS
    if not path.is_file() or not path.stat().st_size:
        return {}
    found: dict[str, StageReport] = {}
    for line, row in read_jsonl(path):
        try:
            one = validate(StageReport, row)
        except ConfigError as error:
            raise DataError(f"no stage of a recipe: {error}", path=path, line=line) from None
        found[one.stage] = one.after(found.get(one.stage))
    return found


def gain_of(suite: Path) -> Paired:
    """What the one policy that a suite compares has gained on its first set of tasks. Raises ConfigError."""
    try:
        report = SuiteReport.model_validate(json.loads((suite / "report.json").read_bytes()))
        return next(iter(next(iter(report.sets.values())).against_baseline.values()))
    except (OSError, ValueError, StopIteration) as error:
        raise ConfigError(f"{suite}: expected the report of a suite with a baseline: {error}") from error


def _has_rows(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
