"""What an audit is asked to do."""

from pathlib import Path
from typing import Self

from pydantic import Field, PositiveInt, model_validator

from gym_bridge.config import JsonObject, StrictModel
from gym_bridge.errors import nearest
from gym_bridge.tokens.audit.findings import SEVERITIES


class AuditSettings(StrictModel):
    """Options of `audit`; the defaults need nothing but the file and a model."""

    show: int = Field(default=0, ge=0)
    """Print the tokens of so many rows, trained ones coloured; in brackets where the output is no terminal."""
    renderer: str | None = None
    """How messages become token ids: a family's name or a dotted path. Left out: as the model's files tell."""
    chat_template_kwargs: JsonObject = Field(default_factory=dict)
    """JSON object for the model's chat template."""
    max_length: PositiveInt | None = None
    """A row with a sequence of more tokens is a problem."""
    against: tuple[Path, ...] = ()
    """A JSONL file of evaluation tasks or rows, whose n-grams must not stand in FILE; give it once a file."""
    ngram: int = Field(default=13, ge=8)
    """Words of an n-gram. Texts of fewer words, down to 8, are looked for as a whole."""
    answer_field: str = Field(default="expected_answer", min_length=1)
    """Where a row keeps the reference answer that its prompt must not hold; dots lead into objects."""
    fail_on: tuple[str, ...] = ()
    """Name of a check whose notes are problems, such as leak or duplicate; give it once a check."""
    allow: tuple[str, ...] = ()
    """Name of a check whose problems are notes; give it once a check."""

    @model_validator(mode="after")
    def _names_checks(self) -> Self:
        for option, names in (("fail_on", self.fail_on), ("allow", self.allow)):
            for name in names:
                if name not in SEVERITIES:
                    raise ValueError(f"{option}={name!r}: no such check{nearest(name, SEVERITIES)}")
        if both := set(self.fail_on) & set(self.allow):
            raise ValueError(f"{min(both)!r} stands in fail_on and in allow; name it in one of them")
        return self
