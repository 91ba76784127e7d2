"""Trainers, wired to their data, their policy and their run directory."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gym_bridge.api.clustered import ClusterFiles, train_on_ray
from gym_bridge.api.models import model_directory
from gym_bridge.api.runs import Begun, begin, open_backend, renderer_of
from gym_bridge.cluster.commands import ADDRESS_VARIABLE
from gym_bridge.errors import PolicyError, missing_extra
from gym_bridge.io.digests import digest_weights
from gym_bridge.io.progress import Progress
from gym_bridge.io.run_directory import RunDirectory
from gym_bridge.schemas.launched import check_offload, launched, num_shares
from gym_bridge.schemas.settings import DPOSettings, GRPOSettings, RewardModelSettings, SFTSettings, TrainSettings

if TYPE_CHECKING:
    from gym_bridge.schemas.seams import LossFn
    from gym_bridge.schemas.tokens import TrainingSequence
    from gym_bridge.tokens.sample_files import Unit
    from gym_bridge.trainers.epochs import EpochSource
    from gym_bridge.trainers.loop import TrainResult
    from gym_bridge.trainers.offline_data import TrainData
    from gym_bridge.trainers.validation import Validation

OfflineSettings = SFTSettings | DPOSettings | RewardModelSettings


def train(settings: TrainSettings, *, quiet: bool = True) -> "TrainResult":
    """Train with the settings of a verb; goes on from the last checkpoint of an earlier run of the same settings.

    Of the processes that torchrun starts the first one does so, with the weights in shards over all; every one returns the result.
    With cluster.kind=ray the processes that Ray places do so.
    Raises ConfigError for wrong settings or data, PolicyError when training fails, ServerError when a server is gone.
    """
    elsewhere = settings.cluster.kind == "ray" and ADDRESS_VARIABLE not in os.environ
    check_offload(settings.policy, in_shards=elsewhere or launched() is not None)  # refused before anything is read
    if elsewhere:
        with RunDirectory(settings.trainer.output).held():
            return train_on_ray(settings, quiet=quiet)
    num_shares(settings.policy)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("training", "train") from None
    from gym_bridge.policy.ranks import joined

    ranks = joined()
    if ranks is None:
        return _lead(settings, quiet=quiet)
    from gym_bridge.policy.parallel_policy import follow, leader_of

    if not ranks.leads:
        result = follow(ranks)
        if result is None:
            raise PolicyError("the first process of this training has failed; its own message tells why")
        return result
    result = None
    try:
        result = _lead(settings, quiet=quiet)
        return result
    finally:
        leader_of(ranks).end(result)


def follow_leader() -> bool:
    """Do what the first of the processes asks that torchrun started, until its training ends; whether that went well.

    Raises PolicyError when it is gone, and what only this process meets.
    """
    from gym_bridge.policy.parallel_policy import follow
    from gym_bridge.policy.ranks import joined

    ranks = joined()
    assert ranks is not None, "a follower has a leader"
    return follow(ranks) is not None


def _lead(settings: TrainSettings, *, quiet: bool) -> "TrainResult":
    """Train in the run directory, which the command that started this process on Ray holds for it."""
    if settings.cluster.kind == "ray":
        result = _train(settings, quiet=quiet)
        ClusterFiles(settings.trainer.output).write_result(result)
        return result
    with RunDirectory(settings.trainer.output).held():
        return _train(settings, quiet=quiet)


def _train(settings: TrainSettings, *, quiet: bool) -> "TrainResult":
    match settings:
        case SFTSettings():
            return _train_sft(settings, quiet=quiet)
        case DPOSettings():
            return _train_dpo(settings, quiet=quiet)
        case RewardModelSettings():
            return _train_reward_model(settings, quiet=quiet)
        case GRPOSettings():
            from gym_bridge.api.training_grpo import train_grpo

            return train_grpo(settings, quiet=quiet)


def total_steps(settings: OfflineSettings, data: "TrainData") -> int:
    """Updates of the whole run."""
    algorithm = settings.algorithm
    of_data = data.train.ends_of_epochs(batch_size=algorithm.batch_size, epochs=algorithm.epochs)[-1]
    return min(of_data, settings.trainer.max_steps or of_data)


def _train_epochs(
    verb: str,
    begun: Begun,
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
    with closing(begun.loggers), Progress(verb, total=total, done=begun.policy.version, quiet=quiet) as progress:
        return train(
            begun.policy,
            source,
            loss_fn,
            run=begun.run,
            settings=settings.trainer,
            writer=begun.loggers,
            progress=progress,
            validation=validation,
        )


def read_data(settings: OfflineSettings, model: Path) -> "TrainData":
    """What a training reads, tokenised for the model in the directory `model`. Raises as `load_data`."""
    from gym_bridge.config import cache_directory
    from gym_bridge.trainers.offline_data import load_data

    renderer = renderer_of(settings.policy, model)
    match settings:
        case SFTSettings():
            from gym_bridge.trainers.sft import sft_reader

            reader = sft_reader(settings.data, renderer)
        case DPOSettings():
            from gym_bridge.trainers.dpo import pair_reader

            reader = pair_reader(settings.data, renderer)
        case RewardModelSettings():
            from gym_bridge.trainers.reward_model import scored_pair_reader

            reader = scored_pair_reader(settings.data, renderer)
    return load_data(settings.data, reader, model=model, cache=cache_directory() / "tokens")


def _validation(sets: "Mapping[str, Sequence[Unit]]", loss_fn: "LossFn", settings: OfflineSettings) -> "Validation | None":
    from gym_bridge.trainers.validation import Validation

    policy = settings.policy
    if not sets:
        return None
    return Validation(
        sets,
        loss_fn,
        microbatch_tokens=policy.microbatch_tokens,
        share_prefixes=policy.prefix_sharing,
        num_shares=num_shares(settings.policy),
    )


def _train_sft(settings: SFTSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.trainers.sft import SFTSource, sft_loss

    loss_fn, model = sft_loss(settings.algorithm), model_directory(settings.policy.model)
    data = read_data(settings, model)
    source = SFTSource(data.train, settings, num_shares=num_shares(settings.policy))
    validation = _validation(data.validation, loss_fn, settings)
    begun = begin(settings, model, digests=data.digests, total_steps=total_steps(settings, data))
    return _train_epochs("train sft", begun, source, loss_fn, settings=settings, validation=validation, quiet=quiet)


def _train_dpo(settings: DPOSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.policy.loading import resolve_device, resolve_dtype
    from gym_bridge.policy.reference import with_ref_logprobs
    from gym_bridge.trainers.dpo import WITHOUT_REFERENCE, Baseline, DPOSource, preference_loss, with_reference

    baseline = Baseline()
    loss_fn = preference_loss(settings.algorithm, baseline=baseline)
    model = model_directory(settings.policy.model)
    data = read_data(settings, model)
    begun = begin(settings, model, digests=data.digests, total_steps=total_steps(settings, data))
    policy = begun.policy

    def refer(sequences: "Sequence[TrainingSequence]") -> "list[TrainingSequence]":
        dtype = resolve_dtype(settings.policy.compute_dtype, resolve_device(settings.policy.device))
        reference = f"{digest_weights(model)} {dtype}"
        return with_ref_logprobs(
            sequences, directory=begun.run.path / "ref_logprobs", model=reference, compute=policy.reference_logprobs
        )

    source = DPOSource(
        data.train,
        settings,
        refer=refer,
        logprobs=policy.logprobs,
        baseline=baseline,
        num_shares=num_shares(settings.policy),
    )
    held_out = data.validation
    if settings.algorithm.loss not in WITHOUT_REFERENCE:
        held_out = {name: with_reference(pairs, refer) for name, pairs in held_out.items()}
    validation = _validation(held_out, preference_loss(settings.algorithm), settings)
    return _train_epochs("train dpo", begun, source, loss_fn, settings=settings, validation=validation, quiet=quiet)


def _train_reward_model(settings: RewardModelSettings, *, quiet: bool) -> "TrainResult":
    from gym_bridge.tokens.tokenizer import padding_id
    from gym_bridge.trainers.reward_model import RewardModelSource, read_at_the_end, reward_model_loss

    loss_fn, model = reward_model_loss(settings.algorithm), model_directory(settings.policy.model)
    data = read_data(settings, model)
    num_steps = total_steps(settings, data)
    opened = partial(open_backend, settings.policy, model, total_steps=num_steps, head="scalar")
    begun = begin(settings, model, digests=data.digests, total_steps=num_steps, open_policy=opened)
    pad_id = padding_id(model)
    source = RewardModelSource(data.train, settings, pad_id=pad_id, num_shares=num_shares(settings.policy))
    held_out = {name: read_at_the_end(pairs, pad_id) for name, pairs in data.validation.items()}
    validation = _validation(held_out, loss_fn, settings)
    return _train_epochs("train rm", begun, source, loss_fn, settings=settings, validation=validation, quiet=quiet)
