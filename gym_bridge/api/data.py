"""Verbs over files: transform, audit, tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gym_bridge.api.models import model_directory
from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import write_jsonl
from gym_bridge.schemas.settings import TransformSettings

if TYPE_CHECKING:
    from gym_bridge.resource_servers.base import Split
    from gym_bridge.tokens.auditor import AuditReport
    from gym_bridge.transforms.engine import TransformReport

DEFAULT_MIN_REWARD = {"response": 0.9, "sft": 0.9}


def transform(inputs: Sequence[Path], settings: TransformSettings) -> "TransformReport":
    """Turn rollouts files into one dataset. Raises ConfigError when no row is left, DataError for a bad row."""
    from gym_bridge.transforms.engine import transform_file

    wanted = settings.min_reward
    try:
        min_reward = None if wanted == "none" else DEFAULT_MIN_REWARD.get(settings.to) if wanted is None else float(wanted)
    except ValueError:
        raise ConfigError(f"--min-reward {wanted!r}: expected a number or 'none'") from None
    return transform_file(
        inputs,
        settings.output,
        to=settings.to,
        min_reward=min_reward,
        min_margin=settings.min_margin,
        on_bad_row=settings.on_bad_row,
        report=settings.report,
    )


def audit(path: Path, *, model: str, show: int = 0) -> "AuditReport":
    """Check a rollouts or sft file against the model's tokens and template. Raises ConfigError for an unknown kind of file."""
    from gym_bridge.tokens.auditor import audit_file
    from gym_bridge.tokens.renderers import load_renderer

    return audit_file(path, load_renderer(model_directory(model)), show=show)


def make_tasks(server: str, output: Path, *, num_tasks: int, seed: int, split: "Split", knobs: dict[str, Any]) -> int:
    """Write `num_tasks` tasks of a resource server to `output`; returns how many. Raises ConfigError."""
    from gym_bridge.resource_servers.registry import load_server

    return write_jsonl(output, load_server(server).tasks(num_tasks=num_tasks, seed=seed, split=split, **knobs))
