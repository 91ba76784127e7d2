"""The like of NeMo Gym's `example_single_tool_call`, as a user writes it: `gym-bridge serve benchmarks/weather_server.py`."""

from collections.abc import Iterator
from typing import Any

from benchmarks.weather_tasks import task
from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.base import ResourceServer, Response, Split, Task, Verdict
from gym_bridge.resource_servers.tools import tool
from gym_bridge.schemas.rollouts import Row


class WeatherTask(Task):
    """Nothing beside what the model is asked."""


class WeatherServer(ResourceServer[WeatherTask, None]):
    """One tool; every answer is worth 1, as in NeMo Gym's."""

    Task = WeatherTask

    @tool
    async def get_weather(self, session: None, city: str) -> dict[str, Any]:
        """Describes the weather that a city has now."""
        return {"city": city, "weather_description": f"The weather in {city} is cold."}

    async def seed(self, task: WeatherTask) -> None:
        """Nothing."""

    async def verify(self, task: WeatherTask, response: Response, session: None) -> Verdict:
        """1.0."""
        return Verdict(reward=1.0)

    @classmethod
    def make_tasks(cls, knobs: StrictModel, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """The tasks of the benchmarks."""
        return map(task, range(num_tasks))
