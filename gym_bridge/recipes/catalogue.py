"""The recipes by name: ours, by their ids and Nemotron's, and those of a user's own folders."""

from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile
from pathlib import Path

from gym_bridge.config import read_settings
from gym_bridge.errors import ConfigError, nearest
from gym_bridge.schemas.recipe_manifest import DataType, StepManifest, read_manifest, read_types

MANIFEST, STAGES, TYPES = "step.toml", "stages.yaml", "types.toml"
PLAIN = ("tiny", "default")
"""The configs that every recipe has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A folder with step.toml, stages.yaml and configs."""

    folder: Path
    manifest: StepManifest

    @property
    def configs(self) -> list[str]:
        """Names of its configs, tiny and default first."""
        found = sorted(one.stem for one in self.folder.glob("*.yaml") if one.name != STAGES)
        return sorted(found, key=lambda name: (PLAIN.index(name) if name in PLAIN else len(PLAIN), name))

    def about(self, config: str) -> str:
        """What the comment at the head of a config of its own says."""
        lines = self.config(config).read_text(encoding="utf-8").splitlines()
        return " ".join(one.removeprefix("#").strip() for one in takewhile(lambda line: line.startswith("#"), lines))

    @property
    def repeats(self) -> bool:
        """Whether it has stages that are repeated."""
        return "rounds" in read_settings(self.folder / STAGES)

    def config(self, name: str) -> Path:
        """The config called `name`: one of its own, or a YAML file of a user's. Raises ConfigError with the nearest."""
        if name.endswith((".yaml", ".yml")):
            return Path(name)
        if name not in self.configs:
            raise ConfigError(f"recipe {self.manifest.step.id} has no config {name!r}{nearest(name, self.configs)}")
        return self.folder / f"{name}.yaml"


def recipes() -> list[Recipe]:
    """All that come with gym-bridge, in the order in which people take them."""
    found = [_recipe(manifest.parent) for manifest in _shipped().glob(f"*/{MANIFEST}")]
    places = {category: place for place, category in enumerate(("data", "sft", "preference", "rl", "chain"))}
    return sorted(found, key=lambda one: (places.get(one.manifest.step.category, len(places)), one.manifest.step.id))


def find_recipe(name: str) -> Recipe:
    """The recipe of that id or alias, or in that folder. Raises ConfigError with the nearest names."""
    if (Path(name) / MANIFEST).is_file():
        return _recipe(Path(name))
    known = {called: one for one in recipes() for called in (one.manifest.step.id, *one.manifest.step.aliases)}
    if name not in known:
        raise ConfigError(f"unknown recipe {name!r}, and no folder with a {MANIFEST}{nearest(name, known)}")
    return known[name]


def data_types() -> dict[str, DataType]:
    """What steps hand to each other."""
    return read_types(_shipped() / TYPES)


def _shipped() -> Path:
    return Path(str(files("gym_bridge") / "recipes"))


def _recipe(folder: Path) -> Recipe:
    return Recipe(folder=folder, manifest=read_manifest(folder / MANIFEST))
