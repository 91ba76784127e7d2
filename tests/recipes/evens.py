"""A resource server of which a policy always gets half of the tasks right, whatever it says."""

from gym_bridge.resource_servers.base import Task, Verdict
from tests.api.letters import Letters


def is_right(row: dict) -> bool:
    """Whether the task of a row, such as `Say 4`, is one of an even number."""
    return int(row["responses_create_params"]["input"][0]["content"].split()[-1]) % 2 == 0


class Evens(Letters):
    """Rewards whatever is said of an even number."""

    Task = Task

    async def verify(self, task: Task, response, session) -> Verdict:
        return Verdict(reward=float(is_right(task.model_dump())))
