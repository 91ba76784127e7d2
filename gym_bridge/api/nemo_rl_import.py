"""`gym-bridge nemo-rl import`: a config of NeMo RL as one of ours, and a list of every key that has no counterpart."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gym_bridge.api.nemo_rl import load_base
from gym_bridge.api.nemo_rl_online_values import implied, online_requirements
from gym_bridge.api.nemo_rl_source import REQUIRED, NoCounterpartError, NoEffectError, Source
from gym_bridge.api.nemo_rl_values import convert
from gym_bridge.config import validate
from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.schemas.nemo_rl_key import ALGORITHMS, Verb
from gym_bridge.schemas.nemo_rl_keys import find_key
from gym_bridge.schemas.settings import SETTINGS

OPAQUE = (
    *("policy.scheduler", "value.scheduler", "policy.tokenizer.chat_template_kwargs", "value.tokenizer.chat_template_kwargs"),
    *("data.val_data_paths", "on_policy_distillation.teacher_model_by_agent_name"),
)
"""Sections that are one value: their parts mean nothing alone."""
RESOLVERS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": lambda a, b: max(a, b),
}
"""The functions of NeMo RL's configs: `${mul:2, ${policy.train_micro_batch_size}}`."""
SECTIONS = ("policy", "data", "env", "sampler", "algorithm", "overlap", "trainer")
SERVER_NOTE = "a resource server: its URL, or the name of one of ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A config of NeMo RL, read."""

    verb: Verb
    settings: dict[str, Any]
    """Ours; `???` where the user has to say."""
    mapped: tuple[tuple[str, str, str], ...]
    """(their key, ours, what it means otherwise here)."""
    lost: tuple[tuple[str, Any, str], ...]
    """(their key, its value, why): the training differs in this."""
    meaningless: tuple[tuple[str, Any, str], ...]
    """The same for keys without a counterpart whose value changes nothing here."""
    implied: tuple[tuple[str, Any, str], ...] = ()
    """(our key, its value, why): what NeMo RL does without a key of its own, or by a default that is not ours."""
    required: dict[str, str] = field(default_factory=dict)
    """Our keys that the user has to set, and what to."""

    def notes(self) -> list[str]:
        """What to tell: what is to be set, what is lost, what means otherwise, what changes nothing."""
        lines = [f"to be set: {key}, {what}" for key, what in self.required.items()]
        lines += [f"not mapped: {key}={_shown(value)}: {why}" for key, value, why in self.lost]
        lines += [f"set: {key}={_shown(value)}: {why}" for key, value, why in self.implied]
        lines += [f"mapped: {theirs} -> {ours}: {note}" for theirs, ours, note in self.mapped if note]
        by_reason: dict[str, list[str]] = {}
        for key, value, why in self.meaningless:
            by_reason.setdefault(why, []).append(f"{key}={_shown(value)}")
        lines += [f"not mapped, nothing lost ({why}): {', '.join(keys)}" for why, keys in by_reason.items()]
        return lines


def import_nemo_rl_config(file: Path, *, output: Path | None = None) -> Imported:
    """Read a config of NeMo RL with all that it inherits, and write ours to `output`, where one is named.

    Raises ConfigError for a file that cannot be read or resolved, that trains with an algorithm that is not ours, or whose
    values ours would refuse; for an `output` that exists.
    """
    file = Path(file)
    if output is not None and Path(output).exists():
        raise ConfigError(f"{output} exists; nothing is overwritten: choose another --output")
    config = read_nemo_rl_config(file)
    verb, section = _algorithm_of(config, file)
    imported = translate(config, verb, section=section, file=file)
    if output is not None:
        with written_aside(Path(output)) as opened:
            opened.write(as_yaml(imported, file).encode())
    return imported


def read_nemo_rl_config(file: Path) -> dict[str, Any]:
    """The config, merged over those that its `defaults` name and with `${...}` put in. Raises ConfigError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not file.is_file():
        raise ConfigError(f"{file}: no such file; expected a config of NeMo RL")
    try:
        merged = load_base(file)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}; what `defaults` names must stand where it says, beside the config") from None
    try:
        with _resolvers():
            return OmegaConf.to_container(OmegaConf.create(merged), resolve=True)  # pyright: ignore[reportReturnType]
    except (OmegaConfBaseException, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{file}: cannot put in the values of ${{...}}: {' '.join(str(error).split())}") from error


def translate(config: Mapping[str, Any], verb: Verb, *, section: str, file: Path) -> Imported:
    """Our settings for a resolved config of NeMo RL, which are checked as `train` checks them; `section` is that of its algorithm.

    Raises ConfigError.
    """
    source = Source(config, verb, section)
    settings: dict[str, Any] = {}
    mapped: list[tuple[str, str, str]] = []
    lost: list[tuple[str, Any, str]] = []
    meaningless: list[tuple[str, Any, str]] = []
    for theirs, value in _leaves(config):
        key = find_key(theirs, verb)
        if key is None:
            lost.append((theirs, value, "no key of NeMo RL that is known here"))
        elif source.is_off(theirs) or source.switches_off(key, theirs):
            meaningless.append((theirs, value, "its section is off"))
        else:
            try:
                found = convert(key, theirs, value, source)
            except NoCounterpartError as reason:
                lost.append((theirs, value, str(reason)))
                continue
            except NoEffectError as reason:
                meaningless.append((theirs, value, str(reason)))
                continue
            settings |= found
            if found:
                mapped.append((theirs, ", ".join(found), key.note))
            else:
                meaningless.append((theirs, value, key.note or "as it is here"))
    silent = implied(settings, source)
    settings |= {key: value for key, (value, _) in silent.items()}
    required = _required(settings, source)
    imported = Imported(
        verb=verb,
        settings=_nested(settings),
        mapped=tuple(mapped),
        lost=tuple(lost),
        meaningless=tuple(meaningless),
        implied=tuple((key, value, why) for key, (value, why) in silent.items()),
        required=required,
    )
    _check(imported, file)
    return imported


def as_yaml(imported: Imported, file: Path) -> str:
    """The settings as YAML, with what was found out as comments at its head."""
    import yaml

    lines = [f"Made of NeMo RL's {file.name}. Start it with: gym-bridge train {imported.verb} --config THIS_FILE"]
    for note in imported.notes():
        lines += textwrap.wrap(note, 128, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    body = yaml.safe_dump(imported.settings, sort_keys=False, allow_unicode=True, width=1000)
    for key, what in imported.required.items():
        name = key.rpartition(".")[2]
        body = body.replace(f"{name}: {REQUIRED}\n", f"{name}: {REQUIRED}  # {what}\n")
    return "".join(f"# {line}\n" for line in lines) + body


def _algorithm_of(config: Mapping[str, Any], file: Path) -> tuple[Verb, str]:
    """Our verb, and their section, of the algorithm. Raises ConfigError."""
    found: list[tuple[Verb, str]] = [
        (verb, section) for section, verb in ALGORITHMS.items() if isinstance(config.get(section), Mapping)
    ]
    if len(found) == 1:
        return found[0]
    what = ", ".join(section for _, section in found) or ("the section eval" if "eval" in config else "none of them")
    raise ConfigError(f"{file}: expected a config of NeMo RL with one section of {', '.join(ALGORITHMS)}; it has {what}")


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values; an empty section is a value."""
    for name, value in config.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and dotted not in OPAQUE:
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted, value


def _required(settings: dict[str, Any], source: Source) -> dict[str, str]:
    """Fill in `???` for what a verb needs and NeMo RL's config did not tell; returns what is to be put there."""
    required: dict[str, str] = {}
    if settings.get("data.train", REQUIRED) == REQUIRED:
        named = source.get("data.train.dataset_name") or source.get("data.dataset_name") or source.get("data.default.dataset_name")
        rows = "task rows of NeMo Gym" if source.verb == "grpo" else "rows"
        required["data.train"] = f"a JSONL file of {rows}" + (f"; there it is {named}" if named else "")
        settings["data.train"] = REQUIRED
    required |= online_requirements(settings)
    settings |= dict.fromkeys(required, REQUIRED)
    if source.verb == "grpo" and "env.gym_configs" not in settings:
        environments = [name for name, value in (source.get("env") or {}).items() if isinstance(value, Mapping)]
        required["env.server"] = SERVER_NOTE + (f"; there it is {', '.join(environments)}" if environments else "")
        settings["env.server"] = REQUIRED
    if source.validates and not any(key.startswith("data.validation.") for key in settings):
        named = source.get("data.validation.dataset_name")
        rows = "tasks" if source.verb == "grpo" else "rows"
        required["data.validation.default"] = f"a JSONL file of held-out {rows}" + (f"; there it is {named}" if named else "")
        settings["data.validation.default"] = REQUIRED
    return required


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"policy.lr": 1}` as `{"policy": {"lr": 1}}`, sections in the order in which ours are read."""
    nested: dict[str, Any] = {section: {} for section in SECTIONS}
    for dotted, value in flat.items():
        *sections, name = dotted.split(".")
        here = nested
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = value
    return {section: values for section, values in nested.items() if values}


def _check(imported: Imported, file: Path) -> None:
    """Raises ConfigError when `train` would refuse the settings; what is still to be set stands in for itself."""
    try:
        validate(SETTINGS[imported.verb], imported.settings)
    except ConfigError as error:
        raise ConfigError(f"{file}: mapped to our settings, these would be refused: {error}") from None


@contextmanager
def _resolvers() -> Iterator[None]:
    """NeMo RL's functions, for as long as the block lasts: OmegaConf knows them for the whole process otherwise."""
    from omegaconf import OmegaConf

    register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver
    ours = [name for name in RESOLVERS if not OmegaConf.has_resolver(name)]
    for name in ours:
        register(name, RESOLVERS[name])
    try:
        yield
    finally:
        for name in ours:
            OmegaConf.clear_resolver(name)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
