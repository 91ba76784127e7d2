"""Tasks played against a target by a policy, into a log that survives."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gym_bridge.api.collectors import open_collector, stop_rules
from gym_bridge.api.models import model_identity, nemo_gym_policy, open_sampler, public_url
from gym_bridge.api.requested import RequestedRollouts
from gym_bridge.api.targets import Target, descriptions_of, open_target
from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.io.digests import digest_file
from gym_bridge.io.jsonl import read_jsonl
from gym_bridge.io.loggers.prometheus import served_metrics
from gym_bridge.io.materialized_inputs import check_inputs
from gym_bridge.io.progress import Progress
from gym_bridge.io.remote_files import fetch, log_elsewhere
from gym_bridge.io.rollout_log import RolloutLog, log_files, sibling, tokens_of
from gym_bridge.rollouts.rows import AGENT_REF
from gym_bridge.schemas.play_settings import CollectSettings, RunSettings
from gym_bridge.schemas.remote_names import shown
from gym_bridge.schemas.rollouts import FAILURE_CLASS, Ledger

if TYPE_CHECKING:
    from gym_bridge.rollouts.stopping import Stop

NOT_OF_THE_ROLLOUTS = frozenset(
    {
        *("input", "output", "overwrite", "adopt", "model", "model_url", "header", "device"),
        *("concurrency", "workers", "ray", "metrics_port", "max_attempts", "patience_s", "request_timeout_s", "rollout_timeout_s"),
        *("time_budget_s", "token_budget", "cost_budget", "input_price", "output_price"),
        *("max_failure_rate", "max_consecutive_failures"),
    }
)
"""Settings that may change between two runs of one collection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectResult:
    """What a collection came to."""

    output: Path
    ledger: Ledger
    mean_reward: float
    """Over all rollouts that have a reward, earlier runs of the same command included; NaN where a budget ended it before any."""
    stopped: str | None = None
    """The budget that ended it early, None when everything was played."""


def collect(settings: CollectSettings, *, quiet: bool = True) -> CollectResult:
    """Play every task of `settings.input` and log the rollouts; goes on where an earlier run of the same settings stopped.

    Raises ConfigError for wrong settings or files, ServerError when a server is gone, failures do not stop or no rollout got a
    reward: what was collected stays on disk.
    """
    return play(settings, title="collect", quiet=quiet)


def play(settings: RunSettings, *, title: str, quiet: bool) -> CollectResult:
    """What `collect` and `eval` do. Files behind URLs are fetched before and sent after."""
    _check_files(settings)
    fetch(settings.input)
    with log_elsewhere(log_files(settings.output), tokens_of(settings.output)):
        return _play(settings, title=title, quiet=quiet)


def _play(settings: RunSettings, *, title: str, quiet: bool) -> CollectResult:
    tasks = RequestedRollouts(settings)
    num_requested = sum(1 for _ in tasks.all_keys())
    adopt = isinstance(settings, CollectSettings) and settings.adopt
    inputs = sibling(settings.output, "_materialized_inputs.jsonl")
    if adopt and not settings.output.exists():
        raise ConfigError(f"{settings.output}: there is nothing to adopt; leave out --adopt")
    if adopt and inputs.exists():
        check_inputs(inputs, ((one.key, one.row.get("responses_create_params") or {}) for one in tasks.planned()))
    with RolloutLog(settings.output, identity=_identity(settings), overwrite=settings.overwrite, adopt=adopt) as log:
        stop = None
        try:
            if any(True for _ in tasks.unfinished(log)):
                progress = Progress(title, total=num_requested, done=log.num_with_reward, quiet=quiet)
                stop = _play_unfinished(settings, log, progress)
        except ServerError as error:
            message = f"{error}; {log.ledger(tasks.all_keys()).describe()}; run the same command to go on"
            raise ServerError(message.removeprefix(f"{error.url}: "), url=error.url, attempts=error.attempts) from error
        ledger = log.ledger(tasks.all_keys())
        log.close(ledger)
        check_ended(log, ledger, stop, where=str(settings.server or settings.agent_url or settings.head_url or "NeMo Gym"))
        stopped = stop.message if stop is not None else None
        return CollectResult(output=settings.output, ledger=ledger, mean_reward=log.mean_reward, stopped=stopped)


def _play_unfinished(settings: RunSettings, log: RolloutLog, progress: Progress) -> "Stop | None":
    from gym_bridge.rollouts import event_loop
    from gym_bridge.rollouts.collecting import collect_into

    with ExitStack() as stack:
        nemo_gym_log = sibling(settings.output, "_nemo_gym.log")
        target = stack.enter_context(open_target(settings, log=nemo_gym_log, policy=nemo_gym_policy(settings)))
        if settings.agent_url or settings.head_url or "://" in (settings.server or ""):
            log.meet_servers(descriptions_of(target))
        tasks = RequestedRollouts(settings, agent=target.default_agent or AGENT_REF["name"])
        _check_cohorts(settings, target)
        log.write_inputs(one.row for one in tasks.planned())
        sampler = stack.enter_context(open_sampler(settings)) if settings.samples_here else None
        far = None
        if settings.ray is not None:
            from gym_bridge.api.far_collectors import far_collectors

            far = stack.enter_context(far_collectors(settings))
        stack.enter_context(progress)
        stack.enter_context(served_metrics(progress.read, port=settings.metrics_port))

        async def run() -> "Stop | None":
            collector = open_collector(settings, target, sampler, far=far, trusted=log.num_with_reward > 0)
            try:
                return await collect_into(
                    log,
                    collector,
                    tasks.unfinished(log, cohorts=target.cohorts),
                    rules=stop_rules(settings),
                    progress=progress,
                    time_budget_s=settings.time_budget_s,
                )
            finally:
                await collector.close()

        return event_loop.run(run())


def _check_cohorts(settings: RunSettings, target: Target) -> None:
    if target.cohort_size is not None and settings.cohort is not False and settings.num_repeats != target.cohort_size:
        raise ConfigError(
            f"the verifier compares {target.cohort_size} rollouts of a task, and answers none before all have come: "
            f"pass --num-repeats {target.cohort_size}"
        )


def check_ended(log: RolloutLog, ledger: Ledger, stop: "Stop | None", *, where: str) -> None:
    """Raises ServerError for a collection that failures stopped, or that has no reward although nothing stopped it."""
    if stop is not None and stop.failed:
        raise ServerError(f"stopped: {stop.message}; {ledger.describe()}; run the same command to go on", url=where)
    if not log.num_with_reward and stop is None:
        told, advice = "nothing", ""
        for _, row in read_jsonl(log.failures) if log.failures.exists() and log.failures.stat().st_size else ():
            failure = (row.get("gym_bridge") or {}).get("failure") or {}
            told = failure.get("message") or row.get(FAILURE_CLASS)
            advice = "" if failure.get("terminal") else "; raise --max-attempts to try again"
        message = f"no rollout got a reward: {ledger.describe()}; the last one failed with: {told}{advice}"
        raise ServerError(message, url=where)


def _check_files(settings: RunSettings) -> None:
    if settings.input.resolve() in (path.resolve() for path in log_files(settings.output)):
        names = f"--input {shown(settings.input)} is a file of the log at --output {shown(settings.output)}"
        raise ConfigError(f"{names}; choose another --output")


def _identity(settings: RunSettings) -> dict[str, Any]:
    values = {name: value for name, value in settings.model_dump(mode="json").items() if name not in NOT_OF_THE_ROLLOUTS}
    addresses = {
        name: public_url(values[name]) for name in ("server", "agent_url", "head_url") if values[name] and "://" in values[name]
    }
    files = {name: digest_file(path) for name, path in _files(settings).items()}
    return {"tasks_sha256": digest_file(settings.input), **model_identity(settings), **values, **addresses, **files}


def _files(settings: RunSettings) -> dict[str, Path]:
    """The files whose content decides what is played."""
    named = [settings.prompt_config, *settings.gym_config, Path((settings.server or "").partition(":")[0])]
    return {f"sha256 of {path.name}": path for path in named if path is not None and path.is_file()}
