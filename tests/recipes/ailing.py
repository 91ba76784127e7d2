"""Resource servers of sums that fail to verify odd ones, or that take their time."""

import asyncio

from gym_bridge.resource_servers.arithmetic.app import ArithmeticServer


class Ailing(ArithmeticServer):
    """Odd sums break it."""

    async def verify(self, task, response, session):
        if int(task.expected_answer) % 2:
            raise RuntimeError("the judge is out")
        return await super().verify(task, response, session)


class Slow(ArithmeticServer):
    """Half a second for each."""

    async def verify(self, task, response, session):
        await asyncio.sleep(0.5)
        return await super().verify(task, response, session)
