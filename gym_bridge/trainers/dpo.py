"""DPO and its kin on pairs of a chosen and a rejected answer: every assistant token of an answer trains, its prompt never does.

How this departs from the papers:
- the reference is the model that the run starts from; its log-probs are computed once, before the first step;
- an answer may be several messages with tool outputs in between, which do not train;
- the likelihood term (`sft_weight`, and that of ORPO) is a mean over the chosen side's answer tokens, without the prompt's;
- KTO takes both sides of a pair, so that it has as many desirable answers as undesirable ones. Its baseline comes from each prompt
  with the answers of the next pair in the file that has another prompt, not of the next one in the batch: so the reference's
  log-probs of these too are computed once.

Pairs are dropped, and counted as `history_rewritten`, where a side has several answers and the model's template writes the
earlier ones anew: no single sequence holds what the model gave then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from torch import Tensor, no_grad

from gym_bridge.algorithms.losses import sequence_negative_log_likelihood
from gym_bridge.algorithms.preference_losses import (
    by_sequence,
    dpo_loss,
    ipo_loss,
    kto_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
)
from gym_bridge.errors import ConfigError
from gym_bridge.policy.prefix_tree import shareable
from gym_bridge.schemas.rollouts import Row
from gym_bridge.schemas.seams import Loss, LossFn, TrainedTokens, TrainStep
from gym_bridge.schemas.settings import DPOAlgorithm, DPOSettings, PreferenceData
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.preference_samples import preference_pair
from gym_bridge.tokens.renderers import Renderer
from gym_bridge.tokens.sample_files import SampleReader, Unit, renderer_identity
from gym_bridge.trainers.epochs import Dataset, EpochSource
from gym_bridge.trainers.own_loss import own_loss

WITHOUT_REFERENCE = ("simpo", "orpo")
HISTORY_REWRITTEN = "history_rewritten"
LogProbs = Callable[[Sequence[TrainingSequence]], list[Tensor]]
Refer = Callable[[Sequence[TrainingSequence]], list[TrainingSequence]]
"""Gives sequences the reference's log-probs."""


def pair_reader(settings: PreferenceData, renderer: Renderer) -> SampleReader:
    """Reads preference rows as units of two sequences, the chosen one first."""

    def read(row: Row) -> Unit | str:
        return preference_pair(row, renderer, train_on=settings.train_on) or HISTORY_REWRITTEN

    identity = {"trainer": "dpo", "renderer": renderer_identity(renderer), "train_on": settings.train_on}
    return SampleReader(open=lambda path: read, identity=identity, whole=True)


def preference_loss(settings: DPOAlgorithm, *, baseline: Callable[[], float] = lambda: 0.0) -> LossFn:
    """The loss that the settings name, over microbatches of (chosen, rejected) sequences; `baseline` is KTO's of this step.

    Reports, as means over the step's pairs, `accuracy` (chosen reward above rejected reward), `margin`, `reward_chosen` and
    `reward_rejected`, where a reward is beta times the score that the loss compares; and, where there is a reference, `kl`: the
    mean over trained tokens of r - 1 - log r with r = pi/pi_ref, 0 where the two agree. Over tokens that the reference sampled it
    estimates KL(pi_ref || pi) (Schulman 2020, k3); the other direction would need tokens that the policy samples, and explodes on
    answers that it has learned to avoid.

    A loss that a dotted path names is made of the settings alone, and gets the reference's log-probs.
    """
    if ":" in settings.loss:
        return own_loss(settings)

    def loss(logprobs: Tensor, columns: TrainedTokens) -> Loss:
        num_pairs = columns.num_sequences // 2
        referred = settings.loss not in WITHOUT_REFERENCE
        scored = logprobs - columns.ref_logprobs if referred else logprobs
        scores = by_sequence(scored, columns.sequence, mean=settings.length_normalised or not referred)
        value = _preference_term(settings, scores[0::2], scores[1::2], baseline(), num_pairs)
        metrics = pair_metrics(settings.beta * scores.detach(), num_pairs)
        sft_weight = 1.0 if settings.loss == "orpo" else settings.sft_weight
        if sft_weight:
            chosen = columns.sequence % 2 == 0
            likelihood = sequence_negative_log_likelihood(logprobs[chosen], columns.sequence[chosen], num_sequences=num_pairs)
            metrics |= {"preference_loss": value.item(), "sft_loss": likelihood.item()}
            value = value + sft_weight * likelihood
        if referred:
            with no_grad():
                metrics["kl"] = float((scored.exp() - 1 - scored).sum() / columns.num_tokens)
        return Loss(value, metrics)

    return loss


def _preference_term(settings: DPOAlgorithm, chosen: Tensor, rejected: Tensor, baseline: float, num_pairs: int) -> Tensor:
    beta, smoothing = settings.beta, settings.label_smoothing
    match settings.loss:
        case "sigmoid":
            return dpo_loss(chosen, rejected, beta=beta, label_smoothing=smoothing, num_pairs=num_pairs)
        case "robust":
            return robust_dpo_loss(chosen, rejected, beta=beta, label_smoothing=smoothing, num_pairs=num_pairs)
        case "ipo":
            return ipo_loss(chosen, rejected, beta=beta, num_pairs=num_pairs)
        case "simpo":
            return simpo_loss(chosen, rejected, beta=beta, margin=settings.margin, num_pairs=num_pairs)
        case "orpo":
            return beta * odds_ratio_loss(chosen, rejected, num_pairs=num_pairs)
        case "kto":
            return kto_loss(chosen, rejected, beta=beta, baseline=baseline, num_pairs=num_pairs)
    raise ConfigError(f"algorithm.loss={settings.loss!r} is no preference loss")


def pair_metrics(rewards: Tensor, num_pairs: int) -> dict[str, float]:
    """Accuracy, margin and both rewards of a microbatch's sides [S], each divided by the pairs of the step."""
    chosen, rejected = rewards[0::2], rewards[1::2]
    sums = {
        "accuracy": (chosen > rejected).sum(),
        "margin": (chosen - rejected).sum(),
        "reward_chosen": chosen.sum(),
        "reward_rejected": rejected.sum(),
    }
    return {name: float(value) / num_pairs for name, value in sums.items()}


@dataclass(slots=True)
class Baseline:
    """KTO's baseline of the present step, which its source sets and its loss reads."""

    value: float = 0.0

    def __call__(self) -> float:
        return self.value


class DPOSource(EpochSource):
    """Steps over the pairs; for KTO each begins with the policy's log-probs of answers to other prompts."""

    counted = "num_pairs"

    def __init__(
        self,
        pairs: Dataset,
        settings: DPOSettings,
        *,
        refer: Refer,
        logprobs: LogProbs,
        baseline: Baseline | None = None,
        num_shares: int = 1,
    ):
        """`baseline` is what KTO's loss reads, and is set before each step. Raises ConfigError when KTO gets pairs of a single
        prompt."""
        self._logprobs = logprobs
        kto = settings.algorithm.loss == "kto"
        others = other_answers(pairs.units, max_length=settings.data.max_length) if kto else []
        units = [*pairs.units, *others]
        if settings.algorithm.loss not in WITHOUT_REFERENCE:
            units = with_reference(units, refer)
        self._others = units[len(pairs.units) :]
        self._baseline = baseline or Baseline()
        super().__init__(
            pairs.with_units(units[: len(pairs.units)]),
            batch_size=settings.algorithm.batch_size,
            epochs=settings.algorithm.epochs,
            seed=settings.trainer.seed,
            policy=settings.policy,
            num_shares=num_shares,
        )

    def next(self) -> TrainStep | None:
        """The next batch; None after the last epoch."""
        step = super().next()
        if step is None or not self._others:
            return step
        others = [one for index in self.batch() for one in self._others[index]]
        ratios = [float(now.sum()) - _reference_sum(one) for now, one in zip(self._logprobs(others), others, strict=True)]
        self._baseline.value = max(0.0, fmean(ratios))
        return TrainStep(microbatches=step.microbatches, metrics={**step.metrics, "baseline": self.baseline})

    @property
    def baseline(self) -> float:
        """KTO's, of the step that `next` gave last."""
        return self._baseline()


def with_reference(pairs: Sequence[Unit], refer: Refer) -> list[Unit]:
    """The pairs with the reference's log-probs."""
    given = refer([one for unit in pairs for one in unit])
    return list(zip(given[0::2], given[1::2], strict=True))


def _reference_sum(sequence: TrainingSequence) -> float:
    assert sequence.ref_logprobs is not None, "the source had them referred"
    return float(np.nansum(sequence.ref_logprobs))


def other_answers(pairs: Sequence[Unit], *, max_length: int) -> list[Unit]:
    """For each pair its prompts with the answers of the next pair that has another prompt, cut to `max_length` tokens.

    Raises ConfigError when there is only one prompt.
    """
    prompts = [unit[0].token_ids[: shareable(unit[0])].tobytes() for unit in pairs]
    if len(set(prompts)) < 2:
        raise ConfigError("algorithm.loss=kto compares answers to different prompts, and all pairs have the same one")
    following = [0] * len(pairs)
    for index in range(2 * len(pairs) - 1, -1, -1):  # twice round, as the last pair is followed by the first
        here, after = index % len(pairs), (index + 1) % len(pairs)
        following[here] = after if prompts[after] != prompts[here] else following[after]
    return [
        tuple(_answered(asked, answer, max_length) for asked, answer in zip(unit, pairs[other], strict=True))
        for unit, other in zip(pairs, following, strict=True)
    ]


def _answered(asked: TrainingSequence, answer: TrainingSequence, max_length: int) -> TrainingSequence:
    """The prompt of `asked` and what stands after the prompt of `answer`."""
    ends, begins = shareable(asked), shareable(answer)
    return replace(
        answer,
        token_ids=np.concatenate([asked.token_ids[:ends], answer.token_ids[begins:]])[:max_length],
        train_mask=np.concatenate([asked.train_mask[:ends], answer.train_mask[begins:]])[:max_length],
    )
