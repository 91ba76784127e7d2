"""Trainers, wired to their data, their policy and their run directory."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.api.models import model_directory
from gym_bridge.config import Registry
from gym_bridge.errors import missing_extra
from gym_bridge.io.digests import digest_file, digest_weights
from gym_bridge.io.metrics import JsonlMetrics
from gym_bridge.io.progress import Progress
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.schemas.play_settings import LimitSettings, TargetSettings
from gym_bridge.schemas.settings import (
    DPOSettings,
    EnvSettings,
    GRPOSettings,
    PolicySettings,
    RewardModelSettings,
    SFTSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from gym_bridge.api.targets import Target
    from gym_bridge.policy.samplers.local import LocalSampler
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.schemas.seams import Head, LossFn, ModelEndpoint, Policy
    from gym_bridge.schemas.tokens import TrainingSequence
    from gym_bridge.tokens.renderers import Renderer
    from gym_bridge.tokens.sample_files import SampleReader, Unit
    from gym_bridge.trainers.epochs import EpochSource
    from gym_bridge.trainers.loop import TrainResult
    from gym_bridge.trainers.offline_data import TrainData
    from gym_bridge.trainers.validation import Validation

log = logging.getLogger(__name__)

OfflineSettings = SFTSettings | DPOSettings | RewardModelSettings


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


BACKENDS: "Registry[Callable[..., Policy]]" = Registry("policy backend", {"torch": "gym_bridge.policy.torch_policy:TorchPolicy"})
SAMPLERS: "Registry[Callable[..., LocalSampler]]" = Registry("sampler", {"local": "gym_bridge.policy.samplers.local:local_sampler"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A run directory that is open for these settings, and the policy, from the run's last checkpoint where it has one."""

    run: RunDirectory
    policy: "Policy"
    checkpoint: Path | None
    writer: JsonlMetrics
    total_steps: int | None
    """Updates of the whole run; None: without an end."""


def _begin(
    settings: TrainSettings, model: Path, *, digests: Mapping[str, str], total_steps: int | None, head: "Head" = "lm"
) -> _Begun:
    run = RunDirectory(settings.trainer.output)
    run.begin(settings, digests={"model": digest_weights(model), **digests})
    checkpoint = run.last_checkpoint()
    policy = BACKENDS.load(settings.policy.backend)(model, settings.policy, head=head, total_steps=total_steps)
    if checkpoint:
        policy.load(checkpoint)
        log.info("going on from %s", checkpoint)
    writer = JsonlMetrics(run.metrics, resume_step=policy.version)
    return _Begun(run=run, policy=policy, checkpoint=checkpoint, writer=writer, total_steps=total_steps)


def _total_steps(settings: OfflineSettings, data: "TrainData") -> int:
    algorithm = settings.algorithm
    of_data = data.train.ends_of_epochs(batch_size=algorithm.batch_size, epochs=algorithm.epochs)[-1]
    return min(of_data, settings.trainer.max_steps or of_data)


def _train_epochs(
    verb: str,
    begun: _Begun,
    source: "EpochSource",
    loss_fn: "LossFn",
    *,
    settings: OfflineSettings,
    validation: "Validation | None",
    quiet: bool,
) -> "TrainResult":
    from gym_bridge.trainers.loop import source_state, train

    if begun.checkpoint:
        source.load_state_dict(source_state(begun.checkpoint))
    total = begun.total_steps
    with Progress(verb, total=total, done=begun.policy.version, quiet=quiet) as progress:
        return train(
            begun.policy,
            source,
            loss_fn,
            run=begun.run,
            settings=settings.trainer,
            writer=begun.writer,
            progress=progress,
            validation=validation,
        )


def _load_data(settings: OfflineSettings, reader: "SampleReader", model: Path) -> "TrainData":
    from gym_bridge.hub import cache_directory
    from gym_bridge.trainers.offline_data import load_data

    return load_data(settings.data, reader, model=model, cache=cache_directory() / "tokens")


def _renderer(settings: PolicySettings, model: Path) -> "Renderer":
    from gym_bridge.tokens.renderers import load_renderer

    return load_renderer(model, name=settings.renderer, options=settings.chat_template_kwargs)


def _validation(sets: "Mapping[str, Sequence[Unit]]", loss_fn: "LossFn", settings: OfflineSettings) -> "Validation | None":
    from gym_bridge.trainers.validation import Validation

    policy = settings.policy
    if not sets:
        return None
    return Validation(sets, loss_fn, microbatch_tokens=policy.microbatch_tokens, share_prefixes=policy.prefix_sharing)


def _train_sft(settings: SFTSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.trainers.sft import SFTSource, sft_loss, sft_reader

    loss_fn, model = sft_loss(settings.algorithm), model_directory(settings.policy.model)
    data = _load_data(settings, sft_reader(settings.data, _renderer(settings.policy, model)), model)
    source, validation = SFTSource(data.train, settings), _validation(data.validation, loss_fn, settings)
    begun = _begin(settings, model, digests=data.digests, total_steps=_total_steps(settings, data))
    return _train_epochs("train sft", begun, source, loss_fn, settings=settings, validation=validation, quiet=quiet)


def _train_dpo(settings: DPOSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.policy.loading import resolve_device, resolve_dtype
    from gym_bridge.policy.reference import with_ref_logprobs
    from gym_bridge.trainers.dpo import WITHOUT_REFERENCE, DPOSource, pair_reader, preference_loss, with_reference

    loss_fn = preference_loss(settings.algorithm, baseline=lambda: source.baseline)
    model = model_directory(settings.policy.model)
    data = _load_data(settings, pair_reader(settings.data, _renderer(settings.policy, model)), model)
    begun = _begin(settings, model, digests=data.digests, total_steps=_total_steps(settings, data))
    policy = begun.policy

    def refer(sequences: "Sequence[TrainingSequence]") -> "list[TrainingSequence]":
        dtype = resolve_dtype(settings.policy.compute_dtype, resolve_device(settings.policy.device))
        reference = f"{digest_weights(model)} {dtype}"
        return with_ref_logprobs(
            sequences, directory=begun.run.path / "ref_logprobs", model=reference, compute=policy.reference_logprobs
        )

    source = DPOSource(data.train, settings, refer=refer, logprobs=policy.logprobs)
    held_out = data.validation
    if settings.algorithm.loss not in WITHOUT_REFERENCE:
        held_out = {name: with_reference(pairs, refer) for name, pairs in held_out.items()}
    validation = _validation(held_out, preference_loss(settings.algorithm), settings)
    return _train_epochs("train dpo", begun, source, loss_fn, settings=settings, validation=validation, quiet=quiet)


def _train_reward_model(settings: RewardModelSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.tokens.tokenizer import padding_id
    from gym_bridge.trainers.reward_model import RewardModelSource, read_at_the_end, reward_model_loss, scored_pair_reader

    loss_fn, model = reward_model_loss(settings.algorithm), model_directory(settings.policy.model)
    data = _load_data(settings, scored_pair_reader(settings.data, _renderer(settings.policy, model)), model)
    begun = _begin(settings, model, digests=data.digests, total_steps=_total_steps(settings, data), head="scalar")
    pad_id = padding_id(model)
    source = RewardModelSource(data.train, settings, pad_id=pad_id)
    held_out = {name: read_at_the_end(pairs, pad_id) for name, pairs in data.validation.items()}
    validation = _validation(held_out, loss_fn, settings)
    return _train_epochs("train rm", begun, source, loss_fn, settings=settings, validation=validation, quiet=quiet)


def _train_grpo(settings: GRPOSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.api.requested import tasks_of
    from gym_bridge.api.targets import open_target
    from gym_bridge.rollouts.models.sampled import SampledEndpoint
    from gym_bridge.tokens.tokenizer import digest_tokenizer
    from gym_bridge.trainers.grpo import GRPOSource, grpo_loss
    from gym_bridge.trainers.loop import source_state, train

    model = model_directory(settings.policy.model)
    renderer = _renderer(settings.policy, model)
    env = settings.env
    assert env is not None, "tasks come with an environment"
    (file,) = settings.data.files
    tasks = list(tasks_of(file.path))
    tasks_digest = digest_file(file.path)
    digests = {"tokenizer": digest_tokenizer(model), "data": tasks_digest}
    begun = _begin(settings, model, digests=digests, total_steps=settings.trainer.max_steps)
    run, policy = begun.run, begun.policy
    with ExitStack() as stack:
        identity = {"tasks_sha256": tasks_digest}
        rollouts = stack.enter_context(RolloutLog(run.path / "rollouts.jsonl", identity=identity))
        target = stack.enter_context(open_target(TargetSettings(server=env.server), log=run.path / "nemo_gym.log"))
        sampler = stack.enter_context(closing(SAMPLERS.load(settings.sampler.kind)(policy, settings.sampler)))
        sampler.push(policy.weights(), policy.version)
        endpoint = SampledEndpoint(sampler, renderer, max_tokens=settings.sampler.max_tokens, model=settings.policy.model)
        source = GRPOSource(tasks, _collector(settings, env, endpoint, target), rollouts, settings)
        if begun.checkpoint:
            source.load_state_dict(source_state(begun.checkpoint))
        stack.enter_context(closing(source))
        progress = stack.enter_context(Progress("train grpo", total=begun.total_steps, done=policy.version, quiet=quiet))
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


def _collector(settings: GRPOSettings, env: EnvSettings, endpoint: "ModelEndpoint", target: "Target") -> "RolloutCollector":
    from gym_bridge.api.targets import environment_of, server_client
    from gym_bridge.rollouts.attempts import Attempts
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.rollouts.concurrency import FixedConcurrency
    from gym_bridge.rollouts.limits import Limits
    from gym_bridge.rollouts.players import LocalPlayer, Retries
    from gym_bridge.rollouts.turn_loop import TurnLoop

    http = server_client()
    loop = TurnLoop(endpoint=endpoint, limits=Limits(max_turns=env.max_turns), seed=settings.trainer.seed)
    environment = environment_of(target, loop=loop, http=http, limits=LimitSettings(rollout_timeout_s=env.rollout_timeout_s))
    player = LocalPlayer(
        Attempts(environment=environment, timeout_s=env.rollout_timeout_s),
        retries=Retries(max_attempts=env.max_attempts),
        closers=[http.close],
    )
    return RolloutCollector(player, concurrency=FixedConcurrency(env.concurrency), cohorts=target.cohorts)
