"""A resource server whose reward is upside down: by its own word the best answers have no vowel."""

from gym_bridge.resource_servers.base import Task
from tests.api.letters import Letters


class Inverted(Letters):
    """Rewards vowels, where it should reward their absence."""

    Task = Task

    @classmethod
    def known_answers(cls, row):
        return {"good": ["rhythm"], "bad": ["aeiou"]}
