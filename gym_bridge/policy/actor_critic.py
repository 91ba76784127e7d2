"""A policy and a value model that learn from the same sequences: one counter of weights, one checkpoint."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from gym_bridge.errors import ConfigError, PolicyError
from gym_bridge.policy.checkpoint import checkpoint_aside
from gym_bridge.policy.reading import Reading
from gym_bridge.policy.torch_policy import PreparedStep
from gym_bridge.schemas.seams import LossFn, Policy, StepResult
from gym_bridge.schemas.settings import CriticSettings, PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence

CRITIC = "critic"
"""Directory of the value model in a checkpoint, and what its metrics' names begin with."""


class JointPolicy(Policy, Protocol):
    """A policy that steps and is saved together with another model, as TorchPolicy can."""

    head: Reading

    def prepare(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> PreparedStep:
        """The update of `step` up to its gradients; raises as `step`."""
        ...

    def write(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Write what `save` writes into `directory`, which a kill leaves half full. Raises OSError when the disk refuses."""
        ...


class ActorCritic:
    """A policy beside a value model of the state before each trained token, each with weights and moments of its own."""

    def __init__(self, policy: JointPolicy, value_model: JointPolicy, value_loss: LossFn, *, warmup_steps: int = 0):
        """`value_model`: opened with head="value", so that its `logprobs` are the values; its loss is `value_loss`, a function of
        values [N] and the other columns. `warmup_steps`: first updates, which leave the policy's weights and moments alone.

        Raises PolicyError for a model that reads a token's own state: it would know what was chosen.
        """
        if value_model.head != "value":
            raise PolicyError(f"a model opened with head={value_model.head!r} gives no values of states; open it with head='value'")
        self.policy, self.value_model, self.value_loss = policy, value_model, value_loss
        self.warmup_steps = warmup_steps
        self.version = policy.version

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """For each sequence the log-probs [n] of its trained tokens, without gradient."""
        return self.policy.logprobs(sequences)

    def reference_logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """As `logprobs`, of the model that training began with."""
        return self.policy.reference_logprobs(sequences)

    def values(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """For each sequence the values [n] of the states before its trained tokens, without gradient."""
        return self.value_model.logprobs(sequences)

    def step(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> StepResult:
        """One optimizer update of both models; numbers of the value model are named `critic/...`, times and rates are of both.

        In the warm-up the policy's loss is only evaluated, its learning rate is 0 and its version counts up. Raises
        NonFiniteLossError as the models do, and neither of them has then changed, and PolicyError when memory runs out.
        """
        started = time.perf_counter()
        if self.version < self.warmup_steps:
            metrics = {**self.policy.evaluate(microbatches, loss_fn), "lr": 0.0}
            learned = self.value_model.step(microbatches, self.value_loss).metrics
            self.policy.version += 1
        else:
            prepared = self.policy.prepare(microbatches, loss_fn)
            try:
                learned = self.value_model.step(microbatches, self.value_loss).metrics
            except BaseException:
                prepared.drop()
                raise
            metrics = prepared.apply().metrics
        self.version = self.policy.version
        return StepResult(metrics=_joined(metrics, learned, seconds=time.perf_counter() - started))

    def evaluate(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> dict[str, float]:
        """The policy's loss over all microbatches, as `loss`, and its metrics, without gradient and without a step."""
        return self.policy.evaluate(microbatches, loss_fn)

    def save(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Write the policy's checkpoint with the value model's in it, as `directory/critic`; a kill leaves both or none.

        Raises PolicyError when the disk refuses.
        """
        with checkpoint_aside(directory) as aside:
            self.policy.write(aside, source_state=source_state)
            self.value_model.write(aside / CRITIC, source_state={})

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote: weights, optimizer states, version, bit for bit.

        Raises PolicyError for what is no whole checkpoint of both.
        """
        self.policy.load(directory)
        self.value_model.load(directory / CRITIC)
        if self.value_model.version != self.policy.version:
            raise PolicyError(
                f"{directory}: no whole checkpoint: its policy is of version {self.policy.version}, "
                f"its value model of version {self.value_model.version}"
            )
        self.version = self.policy.version

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names and tensors of the policy, as a sampler loads them."""
        return self.policy.weights()


def open_actor_critic(
    backend: Callable[..., Any],
    directory: Path,
    settings: PolicySettings,
    critic: CriticSettings,
    *,
    value_loss: LossFn,
    total_steps: int | None = None,
) -> ActorCritic:
    """Policy and value model of the class `backend`, both opened from the model of `directory`.

    Raises ConfigError for a backend whose models cannot step together, and as the backend does.
    """
    policy = backend(directory, settings, head="lm", total_steps=total_steps)
    if lacking := [name for name in ("prepare", "write") if not hasattr(policy, name)]:
        raise ConfigError(
            f"policy.backend={settings.backend} has no {' and no '.join(lacking)}, "
            "without which a value model cannot learn beside it; see TorchPolicy, or use policy.backend=torch"
        )
    own = settings.model_copy(update={"lr": critic.lr})
    value_model = backend(directory, own, head="value", total_steps=total_steps)
    return ActorCritic(policy, value_model, value_loss, warmup_steps=critic.warmup_steps)


def _joined(metrics: Mapping[str, float], learned: Mapping[str, float], *, seconds: float) -> dict[str, float]:
    """The metrics of both models, and the times and rates of their common step, which took `seconds`."""
    joined = {**metrics, **{f"{CRITIC}/{name}": value for name, value in learned.items()}, "train_s": seconds}
    if "peak_memory_gib" in learned:
        joined["peak_memory_gib"] = max(learned["peak_memory_gib"], metrics.get("peak_memory_gib", 0.0))
    rates = {"trained_tokens_per_s": "num_trained_tokens", "tokens_per_s": "num_packed_tokens"}
    return joined | {rate: metrics[count] / seconds for rate, count in rates.items() if count in metrics}
