"""gym-bridge: from NeMo Gym rollouts to trained models.

Every verb of the command line is a function here, loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

from gym_bridge.version import __version__

if TYPE_CHECKING:
    from gym_bridge.api import audit, collect, compare, evaluate, make_tasks, summarize_file, train, transform
    from gym_bridge.api.doctor import doctor
    from gym_bridge.api.reverifying import reverify
    from gym_bridge.errors import ConfigError, DataError, GymBridgeError, PolicyError, ServerError

_HOMES = {
    **dict.fromkeys(("audit", "collect", "compare", "evaluate", "make_tasks", "summarize_file", "train", "transform"), "api"),
    "doctor": "api.doctor",
    "reverify": "api.reverifying",
    **dict.fromkeys(("ConfigError", "DataError", "GymBridgeError", "PolicyError", "ServerError"), "errors"),
}

__all__ = [
    "ConfigError",
    "DataError",
    "GymBridgeError",
    "PolicyError",
    "ServerError",
    "__version__",
    "audit",
    "collect",
    "compare",
    "doctor",
    "evaluate",
    "make_tasks",
    "reverify",
    "summarize_file",
    "train",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gym_bridge.{_HOMES[name]}"), name)
