"""The PyTorch backend of the policy seam, over a Hugging Face decoder. Without padding and without [T, V] logits."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gym_bridge.errors import PolicyError
from gym_bridge.policy.checkpoint import load_trainer_state, read_tokenizer_files, save_checkpoint
from gym_bridge.policy.head import token_logprobs
from gym_bridge.policy.loading import SCORE, load_module, resolve_dtype
from gym_bridge.policy.master_weights import MasterWeights
from gym_bridge.policy.packing import Pack, pack, plan_microbatches
from gym_bridge.schemas.seams import Head, LossFn, StepResult, TrainedTokens
from gym_bridge.schemas.settings import PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence


class TorchPolicy:
    """A decoder with a head, in one process: float32 master weights, forward and backward in the compute dtype."""

    def __init__(self, directory: Path, settings: PolicySettings, *, head: Head = "lm"):
        self.settings = settings
        self.head: Head = head
        self.directory = directory
        self.tokenizer_files = read_tokenizer_files(directory)  # now: the directory may be an old checkpoint, soon removed
        self.device = torch.device(settings.device)
        self.compute_dtype = resolve_dtype(settings.compute_dtype, self.device)
        self.module = load_module(directory, device=self.device, head=head)
        self.masters = MasterWeights(
            self.module, compute_dtype=self.compute_dtype, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.softcap: float | None = getattr(self.module.config, "final_logit_softcapping", None)
        self.version = 0
        self._refuse_unknown_architecture()

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """For each sequence the log-probs [n] of its trained tokens, without gradient; with the scalar head their scores."""
        found: list[Tensor] = []
        for part in plan_microbatches(sequences, max_tokens=self.settings.microbatch_tokens):
            packed = pack(part, device=self.device)
            logprobs, _ = self._forward(packed)
            found += logprobs.cpu().split([one.num_trained for one in part])
        return found

    def step(self, microbatches: Sequence[Sequence[TrainingSequence]], loss_fn: LossFn) -> StepResult:
        """One optimizer update over all microbatches.

        Raises PolicyError when the loss or the gradient is not finite; the weights are then as before the step.
        """
        started = time.perf_counter()
        num_tokens = sum(one.num_trained for part in microbatches for one in part)
        num_sequences = sum(len(part) for part in microbatches)
        metrics: dict[str, float] = {"loss": 0.0}
        packed_tokens = 0
        self.masters.drop_gradients()  # of a step that an error ended halfway
        for part in microbatches:
            packed = pack(part, device=self.device)
            values, entropies = self._forward(packed)
            loss = loss_fn(values, self._columns(part, packed, num_tokens, num_sequences))
            if not torch.isfinite(loss.value):
                raise PolicyError(
                    f"the loss is {loss.value.item()} at step {self.version + 1}; lower policy.lr or look at the batch"
                )
            loss.value.backward()
            packed_tokens += len(packed.token_ids)
            metrics["loss"] += loss.value.item()
            parts = loss.metrics if entropies is None else {**loss.metrics, "entropy": entropies.sum().item() / num_tokens}
            for name, value in parts.items():
                metrics[name] = metrics.get(name, 0.0) + value
        lr = self._lr()
        norm = self.masters.update(lr=lr, max_grad_norm=self.settings.max_grad_norm)
        if not math.isfinite(norm):
            raise PolicyError(f"the gradient's norm is {norm} at step {self.version + 1}; lower policy.lr or look at the batch")
        self.version += 1
        seconds = time.perf_counter() - started
        metrics |= {"grad_norm": norm, "lr": lr, "num_trained_tokens": num_tokens, "num_packed_tokens": packed_tokens}
        metrics |= {"train_s": seconds, "trained_tokens_per_s": num_tokens / seconds}
        return StepResult(metrics=metrics)

    def save(self, directory: Path, *, source_state: Mapping[str, Any]) -> None:
        """Write `directory/model` (a Hugging Face directory in float32) and `directory/trainer` (optimizer, version, source)."""
        save_checkpoint(
            directory,
            module=self.module,
            weights=self.masters.masters,
            tokenizer_files=self.tokenizer_files,
            optimizer=self.masters.state_tensors(),
            state={"version": self.version, "source": dict(source_state)},
        )

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote: weights, optimizer state, version, bit for bit."""
        optimizer, state = load_trainer_state(directory)
        if self.version or self.directory != directory / "model":  # else the constructor has just read them
            self.masters.load_weights(load_module(directory / "model", device=self.device, head=self.head))
        self.masters.load_state_tensors(optimizer)
        self.version = int(state["version"])

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names and tensors in the compute dtype."""
        return ((name, param.detach()) for name, param in self.module.named_parameters())

    def _forward(self, packed: Pack) -> tuple[Tensor, Tensor | None]:
        """Log-probs [N] and entropies [N] of the trained tokens, or their scores [N] alone."""
        hidden = self.module.get_decoder()(
            input_ids=packed.token_ids[None],
            position_ids=packed.position_ids[None],
            attention_mask=packed.attention_mask(),
            use_cache=False,
        ).last_hidden_state[0]
        if self.head == "scalar":
            return (hidden[packed.trained] @ self.module.get_parameter(SCORE)[0]).float(), None
        head = self.module.get_output_embeddings()
        assert head is not None, "load_module gives causal language models, which have a head"
        return token_logprobs(hidden[packed.predictors], head.weight, packed.targets, softcap=self.softcap)

    def _refuse_unknown_architecture(self) -> None:
        """Raise PolicyError for logits that are more than capped products with the output embedding, and for windowed attention."""
        head, config = self.module.get_output_embeddings(), self.module.config
        layers = getattr(config, "layer_types", None)
        if "sliding_attention" in layers if layers else getattr(config, "sliding_window", None):
            raise PolicyError(f"{self.directory}: this model attends within a sliding window, which packing does not reproduce")
        if self.head == "scalar":
            return
        scales = [name for name in ("logit_scale", "logits_scaling") if getattr(config, name, None) not in (None, 1.0)]
        if getattr(head, "bias", None) is not None or scales:
            what = f"scales its logits ({scales[0]})" if scales else "adds a bias to its logits"
            raise PolicyError(f"{self.directory}: this model {what}, which training does not reproduce; choose another family")

    def _columns(self, part: Sequence[TrainingSequence], packed: Pack, num_tokens: int, num_sequences: int) -> TrainedTokens:
        return TrainedTokens(
            old_logprobs=_trained(part, [one.rollout_logprobs for one in part]).to(self.device),
            ref_logprobs=_trained(part, [one.ref_logprobs for one in part]).to(self.device),
            advantages=torch.tensor([one.advantage for one in part], device=self.device)[packed.sequence],
            weights=torch.tensor([one.weight for one in part], device=self.device)[packed.sequence],
            margins=torch.tensor([one.margin for one in part], device=self.device)[packed.sequence],
            sequence=packed.sequence,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
        )

    def _lr(self) -> float:
        warmup = self.settings.warmup_steps
        return self.settings.lr * min(1.0, (self.version + 1) / (warmup + 1))


def _trained(sequences: Sequence[TrainingSequence], columns: Sequence[np.ndarray | None]) -> Tensor:
    """Values [N] of a column at the trained tokens, NaN for sequences that have none."""
    return torch.cat(
        [
            torch.full((one.num_trained,), math.nan) if column is None else torch.from_numpy(column[one.train_mask])
            for one, column in zip(sequences, columns, strict=True)
        ]
    )
