"""Datasets of reasoning-gym by name: their difficulty knobs, checked, and their tasks."""

import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_type_hints

import orjson
from pydantic import TypeAdapter, ValidationError

from gym_bridge.errors import ConfigError, missing_extra, nearest
from gym_bridge.resource_servers.base import Split
from gym_bridge.resource_servers.splits import split_of

NO_KNOBS = ("seed", "size")
"""Fields of a dataset's config that say which tasks, not how hard."""
COMPOSITE = "composite"
"""The one dataset that is a mixture of others, and has no tasks of its own."""
SEEDS = 2**31
MAX_MISSES = 2000
"""Draws without a new task after which a dataset is held for used up."""
Entry = dict[str, Any]


@cache
def kinds() -> Mapping[str, tuple[Any, Any]]:
    """Class and config class of each dataset. Raises ConfigError without the extra."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise missing_extra("resource server 'reasoning'", "servers") from None
    assert reasoning_gym
    return {name: found for name, found in DATASETS.items() if name != COMPOSITE}


def checked_config(kind: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """`knobs` as the config of dataset `kind` takes them: `"3"` becomes 3, `"[1, 2]"` a list. Raises ConfigError."""
    if kind not in kinds():
        raise ConfigError(f"unknown kind {kind!r} of reasoning task{nearest(kind, kinds())}")
    config = kinds()[kind][1]
    types = {name: hint for name, hint in get_type_hints(config).items() if name in config.__dataclass_fields__}
    known = [name for name in types if name not in NO_KNOBS]
    if wrong := sorted(set(knobs) - set(known)):
        raise ConfigError(f"unknown knob {wrong[0]!r} of kind={kind}{nearest(wrong[0], known)}")
    values = {name: _value(kind, name, value, types[name]) for name, value in knobs.items()}
    try:
        made = config(**values)
        if hasattr(made, "validate"):
            made.validate()
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"knobs of kind={kind}: {error or 'reasoning-gym refuses them'}") from error
    return values


def entries(kind: str, config: Mapping[str, Any], *, num_tasks: int, seed: int, split: Split) -> Iterator[Entry]:
    """`num_tasks` different tasks of a split, fixed by the hash of the question. Raises ConfigError when there are too few."""
    generator = random.Random(f"reasoning {kind} {seed}")
    dataset_class, config_class = kinds()[kind]
    seen: set[str] = set()
    misses = 0
    while len(seen) < num_tasks:
        entry = _entry(dataset_class(config_class(**config, seed=generator.randrange(SEEDS), size=1))[0])
        question = entry["question"]
        if question in seen or split_of(question) != split:
            misses += 1
            if misses > MAX_MISSES:
                raise ConfigError(f"num_tasks={num_tasks}: kind={kind} has no more than about {len(seen)} such tasks in a split")
            continue
        misses = 0
        seen.add(question)
        yield entry


def _value(kind: str, name: str, value: Any, hint: Any) -> Any:
    adapter = TypeAdapter(hint)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        if isinstance(value, str):
            try:
                return adapter.validate_json(value)
            except ValidationError:
                pass
        raise ConfigError(f"{name}={value!r} of kind={kind}: {error.errors()[0]['msg']}") from None


def _entry(found: Mapping[str, Any]) -> Entry:
    """Question, answer and metadata as a row on disk keeps them."""
    kept = {key: found[key] for key in ("question", "answer", "metadata")}
    return orjson.loads(orjson.dumps(kept, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY, default=_plain))


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
