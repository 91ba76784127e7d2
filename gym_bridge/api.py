"""Every verb as a function: the only place that wires rooms together.

from gym_bridge import collect, transform, train, evaluate
from gym_bridge.schemas.settings import CollectSettings
"""

import asyncio
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gym_bridge.errors import ConfigError, ServerError, missing_extra
from gym_bridge.io.digests import digest_file, digest_weights
from gym_bridge.io.jsonl import read_jsonl, write_jsonl, written_aside
from gym_bridge.io.metrics import JsonlMetrics
from gym_bridge.io.progress import Progress
from gym_bridge.io.rollout_log import SYNC_S, RolloutLog, sibling
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Ledger, Row
from gym_bridge.schemas.settings import (
    CollectSettings,
    EvalSettings,
    GRPOSettings,
    PlaySettings,
    SFTSettings,
    TransformSettings,
)

if TYPE_CHECKING:
    from gym_bridge.evaluation.summary import Comparison, EvalSummary
    from gym_bridge.policy.torch_policy import TorchPolicy
    from gym_bridge.resource_servers.base import Split
    from gym_bridge.rollouts.collector import PlannedRollout, RolloutCollector
    from gym_bridge.schemas.seams import ModelEndpoint
    from gym_bridge.tokens.auditor import AuditReport
    from gym_bridge.trainers.loop import TrainResult
    from gym_bridge.transforms.engine import TransformReport

log = logging.getLogger(__name__)

DEFAULT_MIN_REWARD = {"response": 0.9, "sft": 0.9}
LOG_SUFFIXES = ("_failures.jsonl", "_materialized_inputs.jsonl", "_manifest.json")
IN_PROCESS_MAX_TOKENS = 512  # of one completion, where neither the command nor the task says less


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectResult:
    """What a collection came to."""

    output: Path
    ledger: Ledger
    mean_reward: float
    """Over all rollouts that have a reward, earlier runs of the same command included."""


def collect(settings: CollectSettings, *, quiet: bool = True) -> CollectResult:
    """Play every task of `settings.input` and log the rollouts; goes on where an earlier run of the same settings stopped.

    Raises ConfigError for wrong settings or files, ServerError when a server is gone or no rollout got a reward: what was
    collected stays on disk.
    """
    return _play(settings, settings.input, settings.output, overwrite=settings.overwrite, title="collect", quiet=quiet)


def evaluate(settings: EvalSettings, *, quiet: bool = True) -> "EvalSummary":
    """Play held-out tasks and summarise the rewards; the summary is written beside the rollouts. Raises as `collect` does."""
    _play(settings, settings.input, settings.output, overwrite=settings.overwrite, title="eval", quiet=quiet)
    summary = summarize_file(settings.output)
    with written_aside(sibling(settings.output, "_summary.json")) as file:
        file.write(summary.model_dump_json(indent=2).encode())
    return summary


def summarize_file(rollouts: Path) -> "EvalSummary":
    """The summary of a rollouts file; its failures file, when there is one, tells how many have no reward."""
    from gym_bridge.evaluation.summary import summarize

    rows, num_failed = _finished_rows(rollouts)
    return summarize(rows, num_failed=num_failed)


def compare(before: Path, after: Path) -> "Comparison":
    """Two rollouts files over the same tasks, paired by task. Raises DataError when their tasks differ."""
    from gym_bridge.evaluation.summary import compare as compare_rows

    rows_before, num_failed_before = _finished_rows(before)
    rows_after, num_failed_after = _finished_rows(after)
    return compare_rows(rows_before, rows_after, num_failed_before=num_failed_before, num_failed_after=num_failed_after)


def transform(inputs: Sequence[Path], settings: TransformSettings) -> "TransformReport":
    """Turn rollouts files into one dataset. Raises ConfigError when no row is left, DataError for a bad row."""
    from gym_bridge.transforms.engine import transform_file

    wanted = settings.min_reward
    try:
        min_reward = None if wanted == "none" else DEFAULT_MIN_REWARD.get(settings.to) if wanted is None else float(wanted)
    except ValueError:
        raise ConfigError(f"--min-reward {wanted!r}: expected a number or 'none'") from None
    return transform_file(
        inputs,
        settings.output,
        to=settings.to,
        min_reward=min_reward,
        min_margin=settings.min_margin,
        on_bad_row=settings.on_bad_row,
        report=settings.report,
    )


def audit(path: Path, *, model: str, show: int = 0) -> "AuditReport":
    """Check a rollouts or sft file against the model's tokens and template. Raises ConfigError for an unknown kind of file."""
    from gym_bridge.tokens.auditor import audit_file
    from gym_bridge.tokens.chatml import load_renderer

    return audit_file(path, load_renderer(model_directory(model)), show=show)


def make_tasks(server: str, output: Path, *, num_tasks: int, seed: int, split: "Split", knobs: dict[str, Any]) -> int:
    """Write `num_tasks` tasks of a resource server to `output`; returns how many. Raises ConfigError."""
    from gym_bridge.resource_servers.registry import SERVERS

    return write_jsonl(output, SERVERS.load(server).tasks(num_tasks=num_tasks, seed=seed, split=split, **knobs))


def train(settings: SFTSettings | GRPOSettings, *, quiet: bool = True) -> "TrainResult":
    """Train with the settings of a verb; goes on from the last checkpoint of an earlier run of the same settings.

    Raises ConfigError for wrong settings or data, PolicyError when training fails, ServerError when a server is gone.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("training", "train") from None
    return _train_sft(settings, quiet=quiet) if isinstance(settings, SFTSettings) else _train_grpo(settings, quiet=quiet)


def model_directory(name: str) -> Path:
    """The Hugging Face directory that a model name means; a GGUF file is unpacked beside itself. Raises ConfigError."""
    from gym_bridge.hub import resolve

    path = resolve(name)
    if path.suffix != ".gguf":
        return path
    try:
        from gym_bridge.policy.loading import unpack_gguf
    except ImportError:
        raise missing_extra(f"unpacking {path.name}", "train") from None
    from gym_bridge.tokens.chatml import TEMPLATE

    return unpack_gguf(path, path.with_suffix(""), plain_chatml_template=TEMPLATE)


def _play(settings: PlaySettings, tasks: Path, output: Path, *, overwrite: bool, title: str, quiet: bool) -> CollectResult:
    from gym_bridge.rollouts.collector import plan

    if tasks.resolve() in (output.resolve(), *(sibling(output, suffix).resolve() for suffix in LOG_SUFFIXES)):
        raise ConfigError(f"--input {tasks} is a file of the log at --output {output}; choose another --output")
    rows = list(_rows(tasks, settings.limit))
    identity, make_endpoint = _endpoint_of(settings)
    own = {"model", "model_url", "input", "output", "overwrite", "concurrency", "device", "max_attempts", "rollout_timeout_s"}
    rollouts = RolloutLog(
        output,
        identity={
            "tasks_sha256": digest_file(tasks),
            **identity,
            **{name: value for name, value in settings.model_dump(mode="json").items() if name not in own},
        },
        overwrite=overwrite,
    )
    planned = list(plan(rows, num_repeats=settings.num_repeats))
    requested = [one.key for one in planned]
    todo = [one for one in planned if not rollouts.is_done(one.key)]
    try:
        rollouts.write_inputs(rows)
        if todo:
            with make_endpoint() as endpoint, _server(settings.server) as url:
                collector = _collector(settings, endpoint, url)
                with Progress(title, total=len(planned), done=len(planned) - len(todo), quiet=quiet) as progress:
                    asyncio.run(_collect_into(rollouts, collector, _with_attempts(todo, rollouts), progress))
    except ServerError as error:
        rollouts.sync()
        message = f"{error}; {rollouts.ledger(requested).describe()}; run the same command to go on"
        raise ServerError(message.removeprefix(f"{error.url}: "), url=error.url, attempts=error.attempts) from error
    finally:
        rollouts.sync()
    rewards = [row["reward"] for row in rollouts.rows()]
    ledger = rollouts.ledger(requested)
    if not rewards:
        last = list(read_jsonl(sibling(output, "_failures.jsonl")))[-1][1]
        message = (
            f"no rollout got a reward: {ledger.describe()}; the last one failed with: {last['gym_bridge']['failure']['message']}"
        )
        raise ServerError(f"{message}; raise --max-attempts to try again", url=settings.server)
    return CollectResult(output=output, ledger=ledger, mean_reward=sum(rewards) / len(rewards))


async def _collect_into(
    rollouts: RolloutLog, collector: "RolloutCollector", planned: Iterable["PlannedRollout"], progress: Progress
) -> None:
    total, count, num_failed_attempts = 0.0, 0, 0
    syncing = asyncio.create_task(_sync_every(rollouts, SYNC_S))
    try:
        async with aclosing(collector.rollouts(planned)) as finished:
            async for rollout in finished:
                rollouts.append(rollout)
                if syncing.done():
                    syncing.result()  # a full disk, which ends the collection
                if rollout.reward is None:
                    num_failed_attempts += 1
                else:
                    total, count = total + rollout.reward, count + 1
                numbers = {"reward": total / count if count else math.nan, "failed attempts": num_failed_attempts}
                progress.advance(numbers, count=rollout.reward is not None)
    finally:
        syncing.cancel()
        await collector.loop.endpoint.close()


async def _sync_every(rollouts: RolloutLog, seconds: float) -> None:
    """Bounds what a kill can cost when rollouts end rarely."""
    while True:
        await asyncio.sleep(seconds)
        rollouts.sync()


def _with_attempts(todo: list["PlannedRollout"], rollouts: RolloutLog) -> Iterator["PlannedRollout"]:
    for one in todo:
        yield replace(one, first_attempt=rollouts.num_failed_attempts[one.key])


def _collector(settings: PlaySettings, endpoint: "ModelEndpoint", url: str) -> "RolloutCollector":
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.rollouts.turn_loop import TurnLoop

    given = {"temperature": settings.temperature, "max_output_tokens": settings.max_output_tokens}
    params = {name: value for name, value in given.items() if value is not None}
    return RolloutCollector(
        TurnLoop(endpoint=endpoint, max_turns=settings.max_turns, seed=settings.seed, params=params),
        server_url=url,
        concurrency=settings.concurrency,
        max_attempts=settings.max_attempts,
        rollout_timeout_s=settings.rollout_timeout_s,
    )


def _endpoint_of(settings: PlaySettings) -> tuple[dict[str, str], "Callable[[], AbstractContextManager[ModelEndpoint]]"]:
    """What identifies the policy of a collection, and how to open its endpoint."""
    if settings.model_url is not None:
        return {"model": settings.model, "model_url": settings.model_url}, lambda: nullcontext(_http_endpoint(settings))
    directory = model_directory(settings.model)
    return {"model_sha256": digest_weights(directory)}, lambda: _in_process_endpoint(settings, directory)


def _http_endpoint(settings: PlaySettings) -> "ModelEndpoint":
    from gym_bridge.rollouts.models.openai_endpoint import ChatEndpoint, ResponsesEndpoint

    kind = ChatEndpoint if settings.model_api == "chat" else ResponsesEndpoint
    key = os.environ.get("OPENAI_API_KEY")
    return kind(settings.model_url or "", settings.model, api_key=key, timeout_s=settings.rollout_timeout_s)


@contextmanager
def _in_process_endpoint(settings: PlaySettings, directory: Path) -> Iterator["ModelEndpoint"]:
    try:
        import torch
    except ImportError:
        raise missing_extra("playing a model in this process", "train") from None
    from gym_bridge.policy.loading import load_module, resolve_dtype
    from gym_bridge.policy.samplers.local import LocalSampler
    from gym_bridge.rollouts.models.sampled import SampledEndpoint
    from gym_bridge.tokens.chatml import load_renderer

    renderer = load_renderer(directory)
    device = torch.device(settings.device)
    module = load_module(directory, device=device, dtype=resolve_dtype(settings.compute_dtype, device))
    with closing(LocalSampler(module, max_batch=settings.concurrency)) as sampler:
        max_tokens = settings.max_output_tokens or IN_PROCESS_MAX_TOKENS
        yield SampledEndpoint(sampler, renderer, max_tokens=max_tokens, model=settings.model)


def _server(name: str) -> AbstractContextManager[str]:
    """The address of the server that `--server` means; one of ours is started for as long as the block lasts."""
    return nullcontext(name) if "://" in name else _started(name)


@contextmanager
def _started(name: str) -> Iterator[str]:
    from gym_bridge.resource_servers.process import ServerProcess
    from gym_bridge.resource_servers.registry import SERVERS

    SERVERS.load(name)  # an unknown name is the user's mistake, not the child's
    with ServerProcess(name) as server:
        yield server.url


def _rows(path: Path, limit: int | None = None) -> Iterator[Row]:
    for position, (_, row) in enumerate(itertools.islice(read_jsonl(path), limit)):
        yield {**row, TASK_INDEX: row.get(TASK_INDEX, position)}


def _finished_rows(rollouts: Path) -> tuple[list[Row], int]:
    """The rows of a rollouts file, and how many rollouts of its failures file never got a reward."""
    rows = [row for _, row in read_jsonl(rollouts)]
    failures = sibling(rollouts, "_failures.jsonl")
    finished = {_key(row) for row in rows}
    failed = {_key(row) for _, row in read_jsonl(failures)} if failures.exists() else set()
    return rows, len(failed - finished)


def _key(row: Row) -> tuple[Any, Any]:
    return row.get(TASK_INDEX), row.get(ROLLOUT_INDEX)


def _open_policy(
    settings: SFTSettings | GRPOSettings, model: Path, run: RunDirectory, data: Path
) -> tuple["TorchPolicy", Path | None, JsonlMetrics]:
    """The policy of a run, from its last checkpoint where it has one, and its metrics file."""
    from gym_bridge.policy.torch_policy import TorchPolicy

    run.begin(settings, digests={"model": digest_weights(model), "data": digest_file(data)})
    checkpoint = run.last_checkpoint()
    policy = TorchPolicy(checkpoint / "model" if checkpoint else model, settings.policy)
    if checkpoint:
        policy.load(checkpoint)
        log.info("going on from %s", checkpoint)
    return policy, checkpoint, JsonlMetrics(run.metrics, resume_step=policy.version)


def _train_sft(settings: SFTSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.tokens.chatml import load_renderer
    from gym_bridge.trainers.loop import source_state, train
    from gym_bridge.trainers.sft import SFTSource, load_samples, sft_loss

    model = model_directory(settings.policy.model)
    samples, dropped = load_samples(settings.data.train, load_renderer(model), max_length=settings.data.max_length)
    for reason, count in dropped.items():
        log.warning("%s: dropped %d rows: %s", settings.data.train, count, reason)
    source = SFTSource(samples, settings)
    run = RunDirectory(settings.trainer.output)
    policy, checkpoint, writer = _open_policy(settings, model, run, settings.data.train)
    if checkpoint:
        source.load_state_dict(source_state(checkpoint))
    total = min(source.total_steps, settings.trainer.max_steps or source.total_steps)
    with Progress("train sft", total=total, done=policy.version, quiet=quiet) as progress:
        return train(policy, source, sft_loss, run=run, settings=settings.trainer, writer=writer, progress=progress)


def _train_grpo(settings: GRPOSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.policy.samplers.local import LocalSampler
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.rollouts.models.sampled import SampledEndpoint
    from gym_bridge.rollouts.turn_loop import TurnLoop
    from gym_bridge.tokens.chatml import load_renderer
    from gym_bridge.trainers.grpo import GRPOSource, grpo_loss
    from gym_bridge.trainers.loop import source_state, train

    model, env = model_directory(settings.policy.model), settings.env
    renderer = load_renderer(model)
    tasks = list(_rows(settings.data.train))
    run = RunDirectory(settings.trainer.output)
    policy, checkpoint, writer = _open_policy(settings, model, run, settings.data.train)
    rollouts = RolloutLog(run.path / "rollouts.jsonl", identity={"tasks_sha256": digest_file(settings.data.train)})
    with _server(env.server) as url, closing(LocalSampler(policy.module, max_batch=settings.sampler.max_batch)) as sampler:
        sampler.push(policy.weights(), policy.version)
        endpoint = SampledEndpoint(sampler, renderer, max_tokens=settings.sampler.max_tokens, model=settings.policy.model)
        collector = RolloutCollector(
            TurnLoop(endpoint=endpoint, max_turns=env.max_turns, seed=settings.trainer.seed, params={"temperature": 1.0}),
            server_url=url,
            concurrency=env.concurrency,
            max_attempts=env.max_attempts,
            rollout_timeout_s=env.rollout_timeout_s,
        )
        source = GRPOSource(tasks, collector, rollouts, settings)
        if checkpoint:
            source.load_state_dict(source_state(checkpoint))
        with (
            closing(source),
            Progress("train grpo", total=settings.trainer.max_steps, done=policy.version, quiet=quiet) as progress,
        ):
            return train(
                policy,
                source,
                grpo_loss(settings.algorithm),
                run=run,
                settings=settings.trainer,
                writer=writer,
                progress=progress,
                sync=sampler,
            )
