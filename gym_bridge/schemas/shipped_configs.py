"""The settings that come with gym-bridge, by name: `sft/tiny` is gym_bridge/configs/sft/tiny.yaml."""

from importlib.resources import files
from pathlib import Path

from gym_bridge.errors import ConfigError, nearest


def find_config(name: str, *, verb: str | None = None) -> Path:
    """The YAML file called `name`: a path, or `family/variant` of a shipped one.

    Raises ConfigError with the nearest names for one that is not shipped, and for one that is of another verb than `verb`.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    directory = Path(str(files("gym_bridge") / "configs"))
    shipped = {f"{file.parent.name}/{file.stem}": file for file in directory.glob("*/*.yaml")}
    if name not in shipped:
        raise ConfigError(f"no shipped config {name!r}{nearest(name, shipped)}")
    if verb is not None and (owner := verb_of(name)) != verb:
        fitting = ", ".join(sorted(one for one in shipped if verb_of(one) == verb))
        raise ConfigError(f"{name} is a config for train {owner}, not for train {verb}; for that there is {fitting}")
    return shipped[name]


def verb_of(name: str) -> str:
    """The verb that a shipped config is for: its family tells, in the quickstart the end of its own name."""
    family, _, variant = name.partition("/")
    return {"rlvr": "grpo", "quickstart": variant.rpartition("_")[2]}.get(family, family)
