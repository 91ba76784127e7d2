"""Trainers, wired to their data, their policy and their run directory."""

import logging
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.api.models import model_directory
from gym_bridge.errors import missing_extra
from gym_bridge.io.digests import digest_file, digest_weights
from gym_bridge.io.metrics import JsonlMetrics
from gym_bridge.io.progress import Progress
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.schemas.play_settings import LimitSettings, TargetSettings
from gym_bridge.schemas.settings import GRPOSettings, SFTSettings

if TYPE_CHECKING:
    from gym_bridge.api.targets import Target
    from gym_bridge.policy.torch_policy import TorchPolicy
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.schemas.seams import ModelEndpoint
    from gym_bridge.trainers.loop import TrainResult

log = logging.getLogger(__name__)


def train(settings: SFTSettings | GRPOSettings, *, quiet: bool = True) -> "TrainResult":
    """Train with the settings of a verb; goes on from the last checkpoint of an earlier run of the same settings.

    Raises ConfigError for wrong settings or data, PolicyError when training fails, ServerError when a server is gone.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("training", "train") from None
    return _train_sft(settings, quiet=quiet) if isinstance(settings, SFTSettings) else _train_grpo(settings, quiet=quiet)


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
    from gym_bridge.tokens.renderers import load_renderer
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
    from gym_bridge.api.requested import tasks_of
    from gym_bridge.api.targets import open_target
    from gym_bridge.policy.samplers.local import LocalSampler
    from gym_bridge.rollouts.models.sampled import SampledEndpoint
    from gym_bridge.tokens.renderers import load_renderer
    from gym_bridge.trainers.grpo import GRPOSource, grpo_loss
    from gym_bridge.trainers.loop import source_state, train

    model = model_directory(settings.policy.model)
    renderer = load_renderer(model)
    tasks = list(tasks_of(settings.data.train))
    run = RunDirectory(settings.trainer.output)
    policy, checkpoint, writer = _open_policy(settings, model, run, settings.data.train)
    with ExitStack() as stack:
        identity = {"tasks_sha256": digest_file(settings.data.train)}
        rollouts = stack.enter_context(RolloutLog(run.path / "rollouts.jsonl", identity=identity))
        target = stack.enter_context(open_target(TargetSettings(server=settings.env.server), log=run.path / "nemo_gym.log"))
        sampler = stack.enter_context(closing(LocalSampler(policy.module, max_batch=settings.sampler.max_batch)))
        sampler.push(policy.weights(), policy.version)
        endpoint = SampledEndpoint(sampler, renderer, max_tokens=settings.sampler.max_tokens, model=settings.policy.model)
        source = GRPOSource(tasks, _collector(settings, endpoint, target), rollouts, settings)
        if checkpoint:
            source.load_state_dict(source_state(checkpoint))
        stack.enter_context(closing(source))
        total = settings.trainer.max_steps
        progress = stack.enter_context(Progress("train grpo", total=total, done=policy.version, quiet=quiet))
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


def _collector(settings: GRPOSettings, endpoint: "ModelEndpoint", target: "Target") -> "RolloutCollector":
    from gym_bridge.api.targets import environment_of, server_client
    from gym_bridge.rollouts.attempts import Attempts
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.rollouts.concurrency import FixedConcurrency
    from gym_bridge.rollouts.limits import Limits
    from gym_bridge.rollouts.players import LocalPlayer, Retries
    from gym_bridge.rollouts.turn_loop import TurnLoop

    env, http = settings.env, server_client()
    loop = TurnLoop(endpoint=endpoint, limits=Limits(max_turns=env.max_turns), seed=settings.trainer.seed)
    environment = environment_of(target, loop=loop, http=http, limits=LimitSettings(rollout_timeout_s=env.rollout_timeout_s))
    player = LocalPlayer(
        Attempts(environment=environment, timeout_s=env.rollout_timeout_s),
        retries=Retries(max_attempts=env.max_attempts),
        closers=[http.close],
    )
    return RolloutCollector(player, concurrency=FixedConcurrency(env.concurrency), cohorts=target.cohorts)
