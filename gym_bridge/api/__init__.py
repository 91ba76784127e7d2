"""Every verb as a function: the only place that wires rooms together.

from gym_bridge import collect, transform, train, evaluate
from gym_bridge.schemas.play_settings import CollectSettings
"""

from gym_bridge.api.collecting import CollectResult, collect
from gym_bridge.api.data import audit, make_tasks, transform
from gym_bridge.api.evaluating import compare, evaluate, summarize_file
from gym_bridge.api.training import train

__all__ = [
    "CollectResult",
    "audit",
    "collect",
    "compare",
    "evaluate",
    "make_tasks",
    "summarize_file",
    "train",
    "transform",
]
