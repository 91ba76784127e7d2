"""gym-bridge: from NeMo Gym rollouts to trained models.

Every verb of the command line is a function here, loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

from gym_bridge.version import __version__

if TYPE_CHECKING:
    from gym_bridge.api.checking_reward import check_reward
    from gym_bridge.api.checkpoints import export_checkpoint, import_checkpoint
    from gym_bridge.api.collecting import collect
    from gym_bridge.api.data import audit, make_tasks, read_tasks, transform, transform_columns
    from gym_bridge.api.doctor import doctor
    from gym_bridge.api.evaluating import compare, evaluate, summarize_file
    from gym_bridge.api.inspecting import inspect_checkpoint
    from gym_bridge.api.nemo_rl import run_nemo_rl, write_nemo_rl_config
    from gym_bridge.api.nemo_rl_import import import_nemo_rl_config
    from gym_bridge.api.preparing import prep
    from gym_bridge.api.reverifying import reverify
    from gym_bridge.api.suites import evaluate_suite
    from gym_bridge.api.training import train
    from gym_bridge.api.viewing import export_page, view
    from gym_bridge.errors import ConfigError, DataError, GymBridgeError, PolicyError, ServerError
    from gym_bridge.recipes.running import run_recipe

_NAMES_OF = {
    "api.checking_reward": ("check_reward",),
    "api.checkpoints": ("export_checkpoint", "import_checkpoint"),
    "api.collecting": ("collect",),
    "api.data": ("audit", "make_tasks", "read_tasks", "transform", "transform_columns"),
    "api.doctor": ("doctor",),
    "api.evaluating": ("compare", "evaluate", "summarize_file"),
    "api.inspecting": ("inspect_checkpoint",),
    "api.nemo_rl": ("run_nemo_rl", "write_nemo_rl_config"),
    "api.nemo_rl_import": ("import_nemo_rl_config",),
    "api.preparing": ("prep",),
    "api.reverifying": ("reverify",),
    "api.suites": ("evaluate_suite",),
    "api.training": ("train",),
    "api.viewing": ("export_page", "view"),
    "recipes.running": ("run_recipe",),
    "errors": ("ConfigError", "DataError", "GymBridgeError", "PolicyError", "ServerError"),
}
_HOMES = {name: home for home, names in _NAMES_OF.items() for name in names}

__all__ = [
    "ConfigError",
    "DataError",
    "GymBridgeError",
    "PolicyError",
    "ServerError",
    "__version__",
    "audit",
    "check_reward",
    "collect",
    "compare",
    "doctor",
    "evaluate",
    "evaluate_suite",
    "export_checkpoint",
    "export_page",
    "import_checkpoint",
    "import_nemo_rl_config",
    "inspect_checkpoint",
    "make_tasks",
    "prep",
    "read_tasks",
    "reverify",
    "run_nemo_rl",
    "run_recipe",
    "summarize_file",
    "train",
    "transform",
    "transform_columns",
    "view",
    "write_nemo_rl_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gym_bridge.{_HOMES[name]}"), name)
