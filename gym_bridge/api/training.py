"""Trainers, wired to their data, their policy and their run directory."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
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
from gym_bridge.schemas.settings import (
    DPOSettings,
    GRPOSettings,
    RewardModelSettings,
    SFTSettings,
    TrainerSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from gym_bridge.api.targets import Target
    from gym_bridge.policy.torch_policy import TorchPolicy
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.schemas.seams import Head, LossFn, ModelEndpoint
    from gym_bridge.schemas.tokens import TrainingSequence
    from gym_bridge.trainers.epochs import EpochSource
    from gym_bridge.trainers.loop import TrainResult

log = logging.getLogger(__name__)


def train(settings: TrainSettings, *, quiet: bool = True) -> "TrainResult":
    """Train with the settings of a verb; goes on from the last checkpoint of an earlier run of the same settings.

    Raises ConfigError for wrong settings or data, PolicyError when training fails, ServerError when a server is gone.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("training", "train") from None
    match settings:
        case SFTSettings():
            return _train_sft(settings, quiet=quiet)
        case DPOSettings():
            return _train_dpo(settings, quiet=quiet)
        case RewardModelSettings():
            return _train_reward_model(settings, quiet=quiet)
        case GRPOSettings():
            return _train_grpo(settings, quiet=quiet)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A run directory that is open for these settings, and the policy, from the run's last checkpoint where it has one."""

    run: RunDirectory
    policy: "TorchPolicy"
    checkpoint: Path | None
    writer: JsonlMetrics


def _begin(settings: TrainSettings, model: Path, *, head: "Head" = "lm") -> _Begun:
    from gym_bridge.policy.torch_policy import TorchPolicy

    run = RunDirectory(settings.trainer.output)
    run.begin(settings, digests={"model": digest_weights(model), "data": digest_file(settings.data.train)})
    checkpoint = run.last_checkpoint()
    policy = TorchPolicy(checkpoint / "model" if checkpoint else model, settings.policy, head=head)
    if checkpoint:
        policy.load(checkpoint)
        log.info("going on from %s", checkpoint)
    writer = JsonlMetrics(run.metrics, resume_step=policy.version)
    return _Begun(run=run, policy=policy, checkpoint=checkpoint, writer=writer)


def _train_epochs(
    verb: str, begun: _Begun, source: "EpochSource", loss_fn: "LossFn", *, settings: TrainerSettings, quiet: bool
) -> "TrainResult":
    from gym_bridge.trainers.loop import source_state, train

    if begun.checkpoint:
        source.load_state_dict(source_state(begun.checkpoint))
    total = min(source.total_steps, settings.max_steps or source.total_steps)
    with Progress(verb, total=total, done=begun.policy.version, quiet=quiet) as progress:
        return train(begun.policy, source, loss_fn, run=begun.run, settings=settings, writer=begun.writer, progress=progress)


def _tell_dropped(data: Path, dropped: Mapping[str, int]) -> None:
    for reason, count in dropped.items():
        log.warning("%s: dropped %d rows: %s", data, count, reason)


def _train_sft(settings: SFTSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.tokens.renderers import load_renderer
    from gym_bridge.trainers.sft import SFTSource, load_samples, sft_loss

    model, data = model_directory(settings.policy.model), settings.data
    samples, dropped = load_samples(data.train, load_renderer(model), max_length=data.max_length, weight=data.weight)
    _tell_dropped(data.train, dropped)
    source, loss_fn = SFTSource(samples, settings), sft_loss(settings.algorithm)
    return _train_epochs("train sft", _begin(settings, model), source, loss_fn, settings=settings.trainer, quiet=quiet)


def _train_dpo(settings: DPOSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.policy.reference import with_ref_logprobs
    from gym_bridge.policy.torch_policy import TorchPolicy
    from gym_bridge.tokens.renderers import load_renderer
    from gym_bridge.trainers.dpo import DPOSource, load_pairs, preference_loss

    model, data = model_directory(settings.policy.model), settings.data
    pairs, dropped = load_pairs(data.train, load_renderer(model), max_length=data.max_length)
    _tell_dropped(data.train, dropped)
    begun = _begin(settings, model)
    policy = begun.policy

    def reference_logprobs(sequences: "Sequence[TrainingSequence]") -> "list[Tensor]":
        frozen = TorchPolicy(model, settings.policy) if policy.version else policy
        return frozen.logprobs(sequences)

    def refer(sequences: "Sequence[TrainingSequence]") -> "list[TrainingSequence]":
        reference = f"{digest_weights(model)} {policy.compute_dtype}"
        return with_ref_logprobs(sequences, directory=begun.run.path / "ref_logprobs", model=reference, compute=reference_logprobs)

    source = DPOSource(pairs, settings, refer=refer, logprobs=policy.logprobs)
    loss_fn = preference_loss(settings.algorithm, baseline=lambda: source.baseline)
    return _train_epochs("train dpo", begun, source, loss_fn, settings=settings.trainer, quiet=quiet)


def _train_reward_model(settings: RewardModelSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.tokens.renderers import load_renderer
    from gym_bridge.trainers.reward_model import RewardModelSource, load_scored_pairs, reward_model_loss

    model, data = model_directory(settings.policy.model), settings.data
    pairs, dropped = load_scored_pairs(data.train, load_renderer(model), max_length=data.max_length, margin=data.margin)
    _tell_dropped(data.train, dropped)
    begun = _begin(settings, model, head="scalar")
    source = RewardModelSource(pairs, settings, pad_id=begun.policy.module.config.pad_token_id)
    loss_fn = reward_model_loss(settings.algorithm)
    return _train_epochs("train rm", begun, source, loss_fn, settings=settings.trainer, quiet=quiet)


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
    begun = _begin(settings, model)
    run, policy = begun.run, begun.policy
    with ExitStack() as stack:
        identity = {"tasks_sha256": digest_file(settings.data.train)}
        rollouts = stack.enter_context(RolloutLog(run.path / "rollouts.jsonl", identity=identity))
        target = stack.enter_context(open_target(TargetSettings(server=settings.env.server), log=run.path / "nemo_gym.log"))
        sampler = stack.enter_context(closing(LocalSampler(policy.module, max_batch=settings.sampler.max_batch)))
        sampler.push(policy.weights(), policy.version)
        endpoint = SampledEndpoint(sampler, renderer, max_tokens=settings.sampler.max_tokens, model=settings.policy.model)
        source = GRPOSource(tasks, _collector(settings, endpoint, target), rollouts, settings)
        if begun.checkpoint:
            source.load_state_dict(source_state(begun.checkpoint))
        stack.enter_context(closing(source))
        total = settings.trainer.max_steps
        progress = stack.enter_context(Progress("train grpo", total=total, done=policy.version, quiet=quiet))
        return train(
            policy,
            source,
            grpo_loss(settings.algorithm),
            run=run,
            settings=settings.trainer,
            writer=begun.writer,
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
