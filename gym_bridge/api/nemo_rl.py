"""Hand-over to NeMo RL: its override file, its launch command, and the launch itself."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_bridge.api.models import model_directory
from gym_bridge.api.nemo_rl_data import find_files, max_positions, survey
from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.transforms.nemo_rl_config import (
    Algorithm,
    Config,
    DatasetFacts,
    base_config_path,
    check_keys,
    override_config,
    script_path,
    sequence_length,
    warnings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoRLPlan:
    """What was written, and what to run."""

    output: Path
    facts: DatasetFacts
    config: Config
    command: tuple[str, ...]
    checkout: Path | None
    """Where the command runs; None when no checkout was named."""
    notes: tuple[str, ...]
    """What was measured and chosen."""
    warnings: tuple[str, ...]

    def describe_command(self) -> str:
        """The launch, for a shell."""
        words = shlex.join(self.command)
        return f"cd {shlex.quote(str(self.checkout))} && {words}" if self.checkout else words


def write_nemo_rl_config(
    algorithm: Algorithm,
    data: Sequence[Path],
    *,
    model: str,
    output: Path,
    base: Path | None = None,
    checkout: Path | None = None,
    overrides: Sequence[str] = (),
) -> NemoRLPlan:
    """Check and measure the rows of `data`, and write the override file over `base`, else over NeMo RL's example config.

    `overrides` such as `sft.max_num_steps=100` come last. Raises ConfigError and DataError, and then writes nothing.
    """
    from gym_bridge.tokens.nemo_rl_lengths import LengthMeter

    files = find_files([Path(one) for one in data], algorithm)
    kind = files[0].kind
    script = script_path(algorithm, kind)
    if checkout is not None:
        checkout = _checked(checkout, script)
    base_path = _base_path(base, checkout, base_config_path(algorithm, kind))
    loaded = load_base(Path(base_path)) if Path(base_path).is_absolute() else None
    tokenizer, name = _model(model)
    facts = survey(files, algorithm, LengthMeter(tokenizer), max_positions=max_positions(tokenizer))
    config = _merged(override_config(algorithm, facts, model=name, base=base_path), overrides)
    if loaded is not None:
        check_keys(config, loaded)
    output = Path(output).resolve()
    plan = NemoRLPlan(
        output=output,
        facts=facts,
        config=config,
        command=("uv", "run", script, "--config", str(output) if loaded is not None else output.name),
        checkout=checkout,
        notes=tuple(_notes(algorithm, facts, base_path)),
        warnings=tuple(warnings(algorithm, facts, config, loaded)),
    )
    _write(plan)
    return plan


def run_nemo_rl(plan: NemoRLPlan) -> int:
    """Start NeMo RL in its checkout and wait; returns its exit code. Raises ConfigError without a checkout or uv."""
    if plan.checkout is None:
        raise ConfigError("no NeMo RL checkout to start in; name one with --run")
    if shutil.which(plan.command[0]) is None:
        raise ConfigError("NeMo RL is started with uv, which is not on the PATH; install it (https://docs.astral.sh/uv)")
    return subprocess.run(plan.command, cwd=plan.checkout, check=False).returncode


def load_base(path: Path) -> Config:
    """NeMo RL's config at `path`, merged over the configs that its `defaults` name. Raises ConfigError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path}: expected a config as key: value")
        config: Any = OmegaConf.to_container(loaded, resolve=False)
    except OSError as error:
        raise ConfigError(f"base config {path}: {error.strerror or error}") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"base config {path}: {' '.join(str(error).split())}") from error
    parents = config.pop("defaults", [])
    merged: Config = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _over(merged, load_base(path.parent / parent))
    return _over(merged, config)


def _over(base: Config, config: Config) -> Config:
    """`config` merged over `base`; a section with `_override_` takes the place of the base's, as NeMo RL has it."""
    merged = dict(base)
    for key, value in config.items():
        if isinstance(value, dict) and value.get("_override_"):
            merged[key] = {name: one for name, one in value.items() if name != "_override_"}
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _over(merged[key], value)
        else:
            merged[key] = value
    return merged


def _checked(checkout: Path, script: str) -> Path:
    checkout = Path(checkout).expanduser()
    if not checkout.is_dir():
        raise ConfigError(f"{checkout}: no such directory; --run takes a checkout of https://github.com/NVIDIA-NeMo/RL")
    if not (checkout / script).is_file():
        raise ConfigError(f"{checkout}: no {script} there; --run takes a checkout of NeMo RL (https://github.com/NVIDIA-NeMo/RL)")
    return checkout.resolve()


def _base_path(base: Path | None, checkout: Path | None, example: str) -> str:
    if base is not None:
        return str(Path(base).resolve())
    return str(checkout / example) if checkout else example


def _model(name: str) -> tuple[Path, str]:
    """Directory of the tokenizer, and what NeMo RL is told the model is called."""
    from gym_bridge.hub import fetch_tokenizer, is_hub_name

    if is_hub_name(name):
        return fetch_tokenizer(name), name
    directory = model_directory(name)
    return directory, str(directory.resolve())


def _merged(config: Config, overrides: Sequence[str]) -> Config:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        if "=" not in override.lstrip("="):
            raise ConfigError(f"override {override!r} has no '='; write section.key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(merged, resolve=False)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException as error:
        raise ConfigError(f"cannot read the overrides: {' '.join(str(error).split())}") from error


def _notes(algorithm: Algorithm, facts: DatasetFacts, base: str) -> list[str]:
    unit = "prompt" if algorithm == "grpo" else "row"
    notes = [f"{facts.num_train} {facts.kind} rows for training; the longest {unit} has {facts.longest} tokens"]
    length = sequence_length(algorithm, facts)
    if length is None:
        notes.append("max_total_sequence_length stays the base's: it must hold all turns of a rollout")
    else:
        room = ", with room for an answer" if algorithm == "grpo" else ""
        notes.append(f"policy.max_total_sequence_length: {length}{room}")
    if not facts.validation:
        notes.append("no validation file: validation is off, and checkpoints are kept by age")
    if not Path(base).is_absolute():
        notes.append(f"the base is {base}, which the config looks for beside itself: copy it to the root of the NeMo RL checkout")
    return notes


def _write(plan: NemoRLPlan) -> None:
    import yaml

    head = ["Written by gym-bridge nemo-rl. Start it in a checkout of NeMo RL:", f"  {shlex.join(plan.command)}"]
    lines = [*head, *plan.notes, *(f"Warning: {one}" for one in plan.warnings)]
    text = "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True, width=120)
    with written_aside(plan.output) as file:
        file.write(text.encode())
