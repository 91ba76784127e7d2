"""Rollouts -> dataset rows: pure functions, streamed. No torch, no network."""

from gym_bridge.config import Registry
from gym_bridge.transforms.format import Format

FORMATS: Registry[Format] = Registry(
    "format",
    {
        "response": "gym_bridge.transforms.response:RESPONSE",
        "sft": "gym_bridge.transforms.sft:SFT",
        "grpo": "gym_bridge.transforms.grpo:GRPO",
        "dpo": "gym_bridge.transforms.dpo:DPO",
        "preference": "gym_bridge.transforms.preference:PREFERENCE",
        "tasks": "gym_bridge.transforms.tasks:TASKS",
    },
)
