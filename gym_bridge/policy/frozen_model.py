"""Models that do not train and stay open: the reference, a teacher."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer
from torch import Tensor
from torch.distributed.tensor import DTensor

from gym_bridge.errors import ConfigError
from gym_bridge.policy.allocator import give_back_freed_memory
from gym_bridge.policy.family import open_family
from gym_bridge.policy.loading import resolve_dtype
from gym_bridge.policy.master_weights import own_copy
from gym_bridge.policy.placement import Placement, Whole
from gym_bridge.policy.reading import Reading, sequence_values, token_values
from gym_bridge.schemas.policy_settings import PolicySettings
from gym_bridge.schemas.tokens import TrainingSequence
from gym_bridge.tokens.tokenizer import vocabulary_size


class FrozenModel:
    """A model as its directory holds it, in the compute dtype alone; family, kernels and packing are a policy's of `settings`.

    In shards it is kept in the master dtype, and computes in the compute dtype.
    """

    def __init__(self, directory: Path, settings: PolicySettings, *, head: Reading = "lm", placement: Placement | None = None):
        """`placement`: where the weights are; in this process where it is left out.

        Raises ConfigError for settings that cannot take effect here, PolicyError for a model that cannot be packed."""
        self.directory, self.settings = directory, settings
        self.head: Reading = head
        self._placement = Whole(settings) if placement is None else placement
        self.family = open_family(settings)
        dtype = resolve_dtype(settings.compute_dtype, self._placement.device)
        plain = settings.model_copy(update={"lora": None})
        self._opened = self._placement.open(self.family, directory, plain, reading=head)
        self.module = self._opened.module
        for param in self.module.parameters():
            if not isinstance(param, DTensor):
                param.data = own_copy(param, dtype)
        if self._placement.device.type == "cpu":
            give_back_freed_memory()

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """For each sequence the log-probs [n] of its trained tokens. Raises PolicyError when memory runs out."""
        return sequence_values(
            sequences,
            lambda packed: self._opened.around(lambda: token_values(self.family, self.module, packed, self.head)),
            settings=self.settings,
            placement=self._placement,
        )


class Teacher(Protocol):
    """Whose log-probs a policy is to come near to."""

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
        """For each sequence the log-probs [n] of its trained tokens. Raises PolicyError when memory runs out."""
        ...


def open_teacher(
    directory: Path,
    settings: PolicySettings,
    *,
    learner: Path,
    open_model: Callable[[Path, PolicySettings], Teacher] = FrozenModel,
) -> Teacher:
    """The model of `directory`, whose token ids must mean what they mean to the model of the directory `learner`. `settings` are
    those of the policy that learns; `open_model` opens it, in shards or here.

    Raises ConfigError for a teacher of other tokens, and as FrozenModel.
    """
    check_same_tokens(directory, learner, where=f"algorithm.teacher={directory}")
    return open_model(directory, settings)


def check_same_tokens(directory: Path, sampler: Path, *, where: str) -> None:
    """Raises ConfigError, which begins with `where`, unless all that the model of `sampler` can sample means the same to the
    model of `directory`, whose output may be padded to more ids.
    """
    if differs := _difference(_vocabulary(directory, where), _vocabulary(sampler, str(sampler))):
        raise ConfigError(f"{where}: {differs}; choose a model with the tokenizer of {sampler}")
    known, needed = vocabulary_size(directory), vocabulary_size(sampler)
    if known is not None and needed is not None and known < needed:
        raise ConfigError(f"{where} knows {known} token ids, but {sampler} can sample {needed}; choose a larger model")


def _vocabulary(directory: Path, where: str) -> dict[str, int]:
    file = directory / "tokenizer.json"
    if not file.exists():
        raise ConfigError(f"{where}: no tokenizer.json there; give a Hugging Face directory with its tokenizer")
    return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)


def _difference(taught: dict[str, int], learned: dict[str, int]) -> str:
    """How the teacher's vocabulary differs from the learner's, empty where it does not."""
    if taught == learned:
        return ""
    _, token = min((index, token) for token, index in {*taught.items()} ^ {*learned.items()})
    there, here = (f"id {one[token]}" if token in one else "unknown" for one in (taught, learned))
    return f"its {len(taught)} tokens are not the policy's {len(learned)}: {token!r} is {there} to it and {here} to the policy"
