"""One policy over all ranks of a training. The leader's calls reach the other ranks, where `follow` makes them too."""

import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import cloudpickle
from torch import Tensor, distributed

from gym_bridge.errors import NonFiniteLossError, PolicyError
from gym_bridge.io.signals import interrupts_deferred, noted
from gym_bridge.policy.checkpoint import checkpoint_aside
from gym_bridge.policy.frozen_model import FrozenModel
from gym_bridge.policy.parallel import Sharded, check_shardable
from gym_bridge.policy.ranks import Ranks
from gym_bridge.policy.reading import Reading
from gym_bridge.policy.torch_policy import PreparedStep, TorchPolicy
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.schemas.seams import LossFn, StepResult
from gym_bridge.schemas.tokens import TrainingSequence

log = logging.getLogger(__name__)

HEAD_START_S = 5.0
"""What the leader has to tell that all have failed, before another rank says so."""
_numbers = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What every rank is to do with one of its policies."""

    policy: int
    method: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The training is over."""

    result: Any
    """None where the leader failed."""


class Leader:
    """The first rank's end of the channel to the others."""

    def __init__(self, ranks: Ranks):
        self._ranks, self._shards = ranks, Shards(ranks)
        self._weights: Iterator[tuple[str, Tensor]] = iter(())
        self._failure: BaseException | None = None  # after which nobody knows what the others wait for

    def call(self, call: Call) -> Any:
        """Have the call made on all ranks; what it gives here.

        Raises what it raises, and the same again ever after, unless it is a loss that is not finite, on which all agree.
        """
        if self._failure is not None:
            raise self._failure
        told = cloudpickle.dumps(call)
        with self._whole():
            for _ in self._weights:  # what a caller left when it failed
                pass
            self._ranks.broadcast(told)
            return self._shards.do(call)

    def weights(self, call: Call) -> Iterator[tuple[str, Tensor]]:
        """What a call gives that gathers one weight after the other."""
        self._weights = iter(self.call(call))
        while (one := self._next_weight()) is not None:
            yield one

    def end(self, result: Any) -> None:
        """Let the others go, with what the training came to; None where it failed.

        Where a call has failed they are left alone: they end when this process does.
        """
        if self._failure is None:
            with self._whole():
                for _ in self._weights:
                    pass
                self._ranks.broadcast(cloudpickle.dumps(Ended(result=result)))

    def _next_weight(self) -> tuple[str, Tensor] | None:
        with self._whole():
            return next(self._weights, None)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What all ranks do together, which no signal cuts in two."""
        with interrupts_deferred():
            try:
                with _loss_told():
                    yield
            except NonFiniteLossError:
                raise
            except BaseException as error:
                self._failure = error
                raise


@cache
def leader_of(ranks: Ranks) -> Leader:
    """The one end of the channel in this process."""
    return Leader(ranks)


class ParallelPolicy:
    """The leader's end of a policy whose weights lie in shards over all ranks; each method is as that of `TorchPolicy`."""

    adapters = None
    in_shards = True

    def __init__(
        self, ranks: Ranks, directory: Path, settings: PolicySettings, *, head: Reading = "lm", total_steps: int | None = None
    ):
        """Opens the policy on all ranks. Raises as `TorchPolicy`, and ConfigError for what cannot be in shards."""
        check_shardable(settings)
        self._leader, self._number = leader_of(ranks), next(_numbers)
        self._own: TorchPolicy = self._call("open", directory, settings, head=head, total_steps=total_steps)
        self.settings, self.directory, self.head = settings, directory, head
        self.family, self.device, self.compute_dtype = self._own.family, self._own.device, self._own.compute_dtype
        self.module = self._own.module
        """This rank's shards: for names and shapes, not to compute with."""

    @property
    def version(self) -> int:
        """Counter of weights."""
        return self._own.version

    @version.setter
    def version(self, version: int) -> None:
        """Count otherwise, on all ranks."""
        self._call("count", version)

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """For each sequence the log-probs [n] of its trained tokens, without gradient."""
        return self._call("logprobs", sequences)

    def reference_logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """As `logprobs`, of the model that training began with."""
        return self._call("reference_logprobs", sequences)

    def step(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> StepResult:
        """One optimizer update over all microbatches, which are dealt out to the ranks."""
        return self._call("step", microbatches, loss_fn)

    def prepare(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> PreparedStep:
        """The update of `step` up to its gradients."""
        self._call("prepare", microbatches, loss_fn)
        return PreparedStep(apply=lambda: self._call("apply"), drop=lambda: self._call("drop"))

    def evaluate(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> dict[str, float]:
        """The loss over all microbatches, as `loss`, and its metrics, without gradient and without a step."""
        return self._call("evaluate", microbatches, loss_fn)

    def save(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Write a checkpoint; the ranks share the file system on which it lies."""
        with checkpoint_aside(directory) as aside:
            self.write(aside, source_state=source_state)

    def write(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Write what `save` writes into `directory`, which a kill leaves half full."""
        self._call("write", directory, source_state=source_state)

    def load(self, directory: Path) -> None:
        """Continue from a checkpoint that any number of ranks wrote."""
        self._call("load", directory)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors of the plain model in the compute dtype, which all ranks gather one by one."""
        return self._leader.weights(Call(policy=self._number, method="weights"))

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        return self._leader.call(Call(policy=self._number, method=method, args=args, options=options))


class ParallelFrozenModel:
    """The leader's end of a model that does not train, in shards over all ranks; its method is as that of `FrozenModel`."""

    def __init__(self, ranks: Ranks, directory: Path, settings: PolicySettings):
        """Opens the model on all ranks. Raises as `FrozenModel`."""
        self._leader, self._number = leader_of(ranks), next(_numbers)
        self._leader.call(Call(policy=self._number, method="open_frozen", args=(directory, settings)))

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """For each sequence the log-probs [n] of its trained tokens."""
        return self._leader.call(Call(policy=self._number, method="logprobs", args=(sequences,)))


class Shards:
    """What one rank holds of the policies of a training, and of other models."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._policies: dict[int, Any] = {}
        self._prepared: dict[int, PreparedStep] = {}

    def do(self, call: Call) -> Any:
        """Make the call and return what it gives here. Raises what it raises."""
        if call.method == "open":
            placement = Sharded(self._ranks, call.args[1])
            self._policies[call.policy] = TorchPolicy(*call.args, placement=placement, **call.options)
            return self._policies[call.policy]
        if call.method == "open_frozen":
            self._policies[call.policy] = FrozenModel(*call.args, placement=Sharded(self._ranks, call.args[1]))
            return None
        policy = self._policies[call.policy]
        if call.method == "count":
            policy.version = call.args[0]
            return None
        if call.method == "prepare":
            self._prepared[call.policy] = policy.prepare(*call.args)
            return None
        if call.method in ("apply", "drop"):
            return getattr(self._prepared.pop(call.policy), call.method)()
        return getattr(policy, call.method)(*call.args, **call.options)


@contextmanager
def _loss_told() -> Iterator[None]:
    """Raises PolicyError in place of torch's error where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise PolicyError(
            "another process of this training has ended; its own message tells why, and the same command goes on from the last "
            "checkpoint"
        ) from error


def follow(ranks: Ranks) -> Any:
    """Do what the leader asks, until it has ended; returns the result that it ended with, None where it failed.

    Signals to end are the leader's to follow. Raises what only this rank meets, such as a lack of memory, and PolicyError when the
    leader is gone; both a moment later, since where all fail alike the leader tells it and ends the others.
    """
    try:
        with noted(signal.SIGTERM), noted(signal.SIGINT), _loss_told():
            result = _followed(ranks)
    except Exception:
        time.sleep(HEAD_START_S)
        raise
    if result is None:
        time.sleep(HEAD_START_S)
    return result


def _followed(ranks: Ranks) -> Any:
    shards = Shards(ranks)
    while not isinstance(call := cloudpickle.loads(ranks.broadcast()), Ended):
        try:
            found = shards.do(call)
            if isinstance(found, Iterator):
                for _ in found:
                    pass
        except NonFiniteLossError:  # of all ranks: the leader tells it
            log.debug("rank %d: a loss or gradient is not finite", ranks.index)
    return call.result
