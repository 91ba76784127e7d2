"""Every verb as a function: the only room that wires the others together. `gym_bridge` exports them all.

from gym_bridge import collect, transform, train, evaluate
from gym_bridge.schemas.play_settings import CollectSettings
"""
