"""One row of the table of NeMo RL's settings, and how rows are written."""

from dataclasses import dataclass
from typing import Literal

Verb = Literal["grpo", "sft", "dpo", "rm"]
VERBS: tuple[Verb, ...] = ("grpo", "sft", "dpo", "rm")
OFFLINE: tuple[Verb, ...] = ("sft", "dpo", "rm")
ONLINE: tuple[Verb, ...] = ("grpo",)
ALGORITHMS: dict[str, Verb] = {"grpo": "grpo", "sft": "sft", "dpo": "dpo", "rm": "rm", "ppo": "grpo", "distillation": "grpo"}
"""Our verb for each section of an algorithm in NeMo RL's configs."""
LIKE_GRPO = ("ppo", "distillation")
"""Those that are read as its section `grpo` where a key has the same name there."""
ANY = "any value"


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoRLKey:
    """One key of NeMo RL, or all below it when it ends in `.*`; `ALGORITHM.` stands for its section grpo, sft, dpo or rm."""

    theirs: str
    ours: str = ""
    """Our key; empty where there is none."""
    note: str = ""
    """What its value means otherwise here; why there is none."""
    verbs: tuple[Verb, ...] = VERBS
    lossless: object = ()
    """Values at which nothing is lost though there is no key of ours; ANY: nothing ever is."""

    def loses_nothing(self, value: object) -> bool:
        """True when a config with this `value` means the same here without the key."""
        return self.lossless == ANY or (isinstance(self.lossless, tuple) and any(_same(value, one) for one in self.lossless))


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


Rows = tuple[tuple[str, str, str], ...]


def mapped(verbs: tuple[Verb, ...], rows: Rows) -> list[NemoRLKey]:
    """Keys that have a counterpart: (theirs, ours, note) each."""
    return [NemoRLKey(theirs=theirs, ours=ours, note=note, verbs=verbs) for theirs, ours, note in rows]


def absent(note: str, *names: str, at: object = (), verbs: tuple[Verb, ...] = VERBS) -> list[NemoRLKey]:
    """Keys without a counterpart, for the reason `note`; nothing is lost where their value is one of `at`."""
    return [NemoRLKey(theirs=name, note=note, lossless=at, verbs=verbs) for name in names]


def below(prefix: str, names: str) -> list[str]:
    """Dotted keys of a section."""
    return [f"{prefix}.{name}" for name in names.split()]
