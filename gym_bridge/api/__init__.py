"""Every verb as a function: the only place that wires rooms together.

from gym_bridge import collect, transform, train, evaluate
from gym_bridge.schemas.play_settings import CollectSettings
"""

from gym_bridge.api.collecting import CollectResult, collect
from gym_bridge.api.data import audit, make_tasks, transform, transform_columns
from gym_bridge.api.evaluating import compare, evaluate, summarize_file
from gym_bridge.api.nemo_rl import run_nemo_rl, write_nemo_rl_config
from gym_bridge.api.preparing import prep
from gym_bridge.api.training import train

__all__ = [
    "CollectResult",
    "audit",
    "collect",
    "compare",
    "evaluate",
    "make_tasks",
    "prep",
    "run_nemo_rl",
    "summarize_file",
    "train",
    "transform",
    "transform_columns",
    "write_nemo_rl_config",
]
