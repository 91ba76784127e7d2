"""The PyTorch backend of the policy seam, over a Hugging Face decoder. Without padding and without [T, V] logits."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gym_bridge.errors import NonFiniteLossError, PolicyError
from gym_bridge.policy.activation_checkpointing import checkpoint_layers
from gym_bridge.policy.checkpoint import ADAPTER, checkpoint_aside, load_trainer_state, read_tokenizer_files, write_checkpoint
from gym_bridge.policy.failures import memory_told, non_finite, optimizer_memory_told
from gym_bridge.policy.family import open_family
from gym_bridge.policy.flops import Utilisation
from gym_bridge.policy.frozen_model import FrozenModel
from gym_bridge.policy.loading import resolve_dtype
from gym_bridge.policy.master_weights import MasterWeights
from gym_bridge.policy.memory import peak_memory_gib
from gym_bridge.policy.packing import Pack, pack
from gym_bridge.policy.placement import Placement, Whole
from gym_bridge.policy.reading import Reading, sequence_values, token_values
from gym_bridge.policy.schedules import Schedule
from gym_bridge.policy.step_tally import StepTally, merged
from gym_bridge.schemas.seams import LossFn, StepResult, TrainedTokens
from gym_bridge.schemas.settings import PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.renderer_file import renderer_choice, renderer_file


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedStep:
    """An optimizer update whose gradients are computed and finite. Until one of the two is called, no other step can begin."""

    apply: Callable[[], StepResult]
    """Make the update."""
    drop: Callable[[], None]
    """Forget its gradients: nothing has changed."""


class TorchPolicy:
    """A decoder with a head: master weights, forward and backward in the compute dtype.

    With a placement over several processes each of them holds such a policy, and all call its methods alike, but for `save`.
    """

    in_shards = False
    """Whether sampling needs a copy of the weights: here the module has them whole."""

    def __init__(
        self,
        directory: Path,
        settings: PolicySettings,
        *,
        head: Reading = "lm",
        total_steps: int | None = None,
        placement: Placement | None = None,
    ):
        """`directory`: the model that training begins with, with adapters their base; `load` then goes on from a checkpoint of it.
        `head`: `value` begins with a head of zeros on a language model. `total_steps`: updates of the whole run, over which a
        schedule falls. `placement`: where the weights are; in this process where it is left out.

        Raises ConfigError for settings that cannot take effect here, PolicyError for a model that cannot train.
        """
        self.settings, self.directory, self.total_steps = settings, directory, total_steps
        self.head: Reading = head
        self.schedule = Schedule(settings, total_steps=total_steps)
        self.placement = Whole(settings) if placement is None else placement
        self.device = self.placement.device
        self.compute_dtype = resolve_dtype(settings.compute_dtype, self.device)
        self.family = open_family(settings)
        self.tokenizer_files = read_tokenizer_files(directory)  # now: the directory may be an old checkpoint, soon removed
        choice = renderer_choice(directory, name=settings.renderer, options=settings.chat_template_kwargs)
        self.tokenizer_files |= renderer_file(choice)
        self._opened = self.placement.open(self.family, directory, settings, reading=head)
        self.module, self.adapters = self._opened.module, self._opened.adapters
        if settings.activation_checkpointing:
            checkpoint_layers(self.module, selective=settings.activation_checkpointing == "selective")
        with optimizer_memory_told(settings):
            self.masters = MasterWeights(self.module, settings, compute_dtype=self.compute_dtype)
        self.utilisation = Utilisation(
            self.module, device=self.device, compute_dtype=self.compute_dtype, num_devices=settings.together
        )
        self.version = 0
        self._loaded: Path | None = None
        self._reference: FrozenModel | None = None

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """For each sequence the log-probs [n] of its trained tokens, without gradient; with the scalar head their scores."""
        return sequence_values(sequences, self._forward, settings=self.settings, placement=self.placement)

    def reference_logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """As `logprobs`, of the model that training began with: with adapters this one without them, else `directory`, which is
        read once more when first needed and then kept, in the compute dtype (in shards in the master dtype).

        Raises PolicyError where `directory` is the checkpoint that was loaded, and not the first model.
        """
        if self.adapters:
            with self.adapters.off():
                return self.logprobs(sequences)
        if not self.version:
            return self.logprobs(sequences)
        if self.directory == self._loaded:
            raise PolicyError(
                f"{self.directory} is a checkpoint, no reference; open the policy from the run's first model, then load"
            )
        if self._reference is None:
            self._reference = FrozenModel(self.directory, self.settings, head=self.head, placement=self.placement)
        return self._reference.logprobs(sequences)

    def step(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> StepResult:
        """One optimizer update over all microbatches.

        Raises NonFiniteLossError with the sequences when the loss or the gradient is not finite, PolicyError when memory runs out;
        the weights are then as before the step.
        """
        return self.prepare(microbatches, loss_fn).apply()

    def prepare(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> PreparedStep:
        """The update of `step` up to its gradients, so that it can be made together with another model's, or not at all.

        Raises as `step`.
        """
        started = time.perf_counter()
        self.utilisation.begin()
        with self.masters.dropping_on_error():
            metrics = self._losses(microbatches, loss_fn, learn=True)
            with optimizer_memory_told(self.settings):
                norm = self.masters.clip_gradients(self.settings.max_grad_norm)
            if not math.isfinite(norm):
                self.masters.drop_gradients()
                blamed = self._without_finite_gradient(microbatches, loss_fn)
                raise self._non_finite(f"gradient's norm is {norm} at step {self.version + 1}", blamed)
        metrics |= {"grad_norm": norm, "train_s": time.perf_counter() - started}
        return PreparedStep(apply=partial(self._apply, metrics), drop=self.masters.drop_gradients)

    def evaluate(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> dict[str, float]:
        """The loss over all microbatches, as `loss`, and its metrics, without gradient and without a step.

        Raises NonFiniteLossError and PolicyError as `step`.
        """
        return self._losses(microbatches, loss_fn, learn=False)

    def save(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Write `directory/model` (a plain Hugging Face directory in float32, adapters merged) and `directory/trainer` (optimizer,
        adapters, version, source)."""
        with checkpoint_aside(directory) as aside:
            self.write(aside, source_state=source_state)

    def write(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Write what `save` writes into `directory`, which a kill leaves half full. Raises OSError when the disk refuses."""
        masters, adapters = self.masters.masters, self.adapters
        write_checkpoint(
            directory,
            placement=self.placement,
            module=self.module,
            weights=dict(adapters.merged(masters)) if adapters else {name: one.float() for name, one in masters.items()},
            tokenizer_files=self.tokenizer_files,
            optimizer=self.masters.state_tensors(),
            state={"version": self.version, "source": dict(source_state)},
            save_adapter=partial(adapters.save, tensors=adapters.whole(masters)) if adapters else None,
        )

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote: weights, optimizer state, version, bit for bit.

        Raises PolicyError for what is no whole checkpoint, and with adapters for a policy opened from the merged model.
        """
        optimizer, state = load_trainer_state(directory, self.placement, self.masters.state_tensors())
        if self.adapters:
            if self.directory == directory / "model":
                raise PolicyError(f"{self.directory} has its adapters merged; open the policy from the base model, then load")
            self.adapters.load(directory / ADAPTER, self.masters.masters)
        elif self.version or self.directory != directory / "model":  # else the constructor has just read them
            self.placement.read_weights(self.masters.masters, self.family, directory / "model", reading=self.head)
        self.masters.publish()
        self.masters.load_state_tensors(optimizer)
        self.version, self._loaded = int(state["version"]), directory / "model"

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names and tensors of the plain model in the compute dtype and on the policy's device, adapters merged."""
        plain = self.adapters.merged(self.masters.masters) if self.adapters else self.module.named_parameters()
        return ((name, self.placement.whole(one.detach().to(self.compute_dtype)).to(self.device)) for name, one in plain)

    def _apply(self, metrics: dict[str, float]) -> StepResult:
        started = time.perf_counter()
        lr = self.schedule(self.version)
        with self.masters.dropping_on_error(), optimizer_memory_told(self.settings):
            self.masters.update(lr=lr)
        self.version += 1
        seconds = metrics["train_s"] + time.perf_counter() - started
        metrics |= {"lr": lr, "train_s": seconds, "peak_memory_gib": max(self.placement.gathered(peak_memory_gib(self.device)))}
        metrics["trained_tokens_per_s"] = metrics["num_trained_tokens"] / seconds
        metrics["tokens_per_s"] = metrics["num_packed_tokens"] / seconds
        used = self.placement.gathered(self.utilisation.metrics(seconds=seconds))
        return StepResult(metrics=metrics | {name: fmean(one[name] for one in used) for name in used[0]})

    def _pack(self, part: Sequence[TrainingSequence]) -> Pack:
        sharing, place = self.settings.prefix_sharing, self.placement
        return pack(part, share_prefixes=sharing, device=self.device, multiple_of=place.token_multiple, share=place.token_share)

    def _losses(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn, *, learn: bool) -> dict[str, float]:
        """The loss, its metrics and the numbers of tokens, summed; with `learn` the gradients are added to the masters'."""
        num_tokens = sum(one.num_trained for part in microbatches for one in part)
        num_sequences = sum(len(part) for part in microbatches)
        tally = StepTally(num_tokens)
        for part, counts in self.placement.dealt(microbatches):
            packed = self._pack(part)
            packed_tokens = packed.num_tokens
            with memory_told(part, self.settings, packed_tokens=packed_tokens), torch.set_grad_enabled(learn):
                values, entropies = self._forward(packed)
                columns = self._columns(part, packed, num_tokens, num_sequences)
                loss = loss_fn(values, replace(columns, entropies=entropies))
                value = loss.value.item()
                if self.placement.anywhere(not math.isfinite(value)):
                    raise self._without_finite_loss(part, value, learn=learn)
                if learn:
                    (loss.value if counts else 0 * loss.value).backward()
            if counts:
                tally.add(value, loss, entropies, packed_tokens=packed_tokens)
                if learn:
                    self.utilisation.count(packed.position_ids, num_trained=len(packed.targets))
        return merged(self.placement.gathered(tally))

    def _without_finite_loss(self, part: Sequence[TrainingSequence], value: float, *, learn: bool) -> NonFiniteLossError:
        found = [] if math.isfinite(value) else [(value, list(part))]
        blamed = [one for of_process in self.placement.gathered(found) for one in of_process]
        when = f"at step {self.version + 1}" if learn else f"in the evaluation after step {self.version}"
        return self._non_finite(f"loss is {blamed[0][0]} {when}", [one for _, sequences in blamed for one in sequences])

    def _without_finite_gradient(
        self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn
    ) -> list[TrainingSequence]:
        """The sequences of the microbatches whose own gradient is not finite; all of them where only the sum is not."""
        blamed: list[TrainingSequence] = []
        for part in microbatches:
            self._losses([part], loss_fn, learn=True)
            if not math.isfinite(self.masters.gradient_norm()):
                blamed += part
            self.masters.drop_gradients()
        return blamed or [one for part in microbatches for one in part]

    def _non_finite(self, what: str, sequences: Sequence[TrainingSequence]) -> NonFiniteLossError:
        if self.head == "value":
            return non_finite(f"the value model's {what}", sequences, lower="algorithm.critic.lr")
        return non_finite(f"the {what}", sequences)

    def _forward(self, packed: Pack) -> tuple[Tensor, Tensor | None]:
        return self._opened.around(lambda: token_values(self.family, self.module, packed, self.head))

    def _columns(self, part: Sequence[TrainingSequence], packed: Pack, num_tokens: int, num_sequences: int) -> TrainedTokens:
        def of(*names: str) -> Tensor:
            return _trained(part, names).to(self.device)

        return TrainedTokens(
            rollout_logprobs=of("rollout_logprobs"),
            old_logprobs=of("old_logprobs", "rollout_logprobs"),
            ref_logprobs=of("ref_logprobs"),
            advantages=of("advantages", "advantage"),
            returns=of("returns"),
            old_values=of("old_values"),
            weights=torch.tensor([one.weight for one in part], device=self.device)[packed.sequence],
            margins=torch.tensor([one.margin for one in part], device=self.device)[packed.sequence],
            sequence=packed.sequence,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
        )


def _trained(sequences: Sequence[TrainingSequence], names: Sequence[str]) -> Tensor:
    """Values [N] at the trained tokens of the first of the named columns that a sequence has, NaN where it has none."""
    return torch.cat([_column(one, names) for one in sequences])


def _column(sequence: TrainingSequence, names: Sequence[str]) -> Tensor:
    found = next((value for name in names if (value := getattr(sequence, name)) is not None), math.nan)
    if isinstance(found, np.ndarray):
        return torch.from_numpy(found[sequence.train_mask])
    return torch.full((sequence.num_trained,), found)
