"""A collector over a feed: tasks that come while others are played."""

import asyncio
from contextlib import aclosing

import pytest

from gym_bridge.rollouts.models.model_http import EndpointError
from gym_bridge.rollouts.task_feed import TaskFeed
from tests.rollouts.stage import ScriptedEndpoint, counter_task, said, serving_counter, turn
from tests.rollouts.test_collector import collecting


def task(index, first=0):
    return {**counter_task(), "_ng_task_index": index, "_ng_rollout_index": first}


def answers(request):
    return turn(said("done"))


async def keys_of(groups, count):
    return [[tuple(one.key) for one in (await anext(groups)).rollouts] for _ in range(count)]


@pytest.mark.parametrize("cohorts", [False, True])
def test_tasks_are_played_as_they_come(cohorts):
    async def run():
        feed = TaskFeed()
        async with (
            serving_counter() as (url, _),
            collecting(ScriptedEndpoint(answers), url, cohorts=cohorts) as collector,
            aclosing(collector.groups(feed, group_size=2)) as groups,
        ):
            waiting = asyncio.create_task(anext(groups))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            feed.put([task(7, first=4)])
            first = await waiting
            feed.put([task(1), task(2)])
            others = await keys_of(groups, 2)
            return [[tuple(one.key) for one in first.rollouts], *sorted(others)]

    assert asyncio.run(run()) == [[(7, 4), (7, 5)], [(1, 0), (1, 1)], [(2, 0), (2, 1)]]


def test_a_task_that_comes_again_makes_a_group_of_its_own():
    async def run():
        feed = TaskFeed()
        feed.put([task(3), task(3, first=2)])
        async with (
            serving_counter() as (url, _),
            collecting(ScriptedEndpoint(answers), url, concurrency=1) as collector,
            aclosing(collector.groups(feed, group_size=2)) as groups,
        ):
            return await keys_of(groups, 2)

    assert asyncio.run(run()) == [[(3, 0), (3, 1)], [(3, 2), (3, 3)]]


def test_every_attempt_is_told_of_as_it_ends_and_how_many_rollouts_ended_with_it():
    asked = 0

    def fails_once(request):
        nonlocal asked
        asked += 1
        if asked == 1:
            raise EndpointError("the model broke", url="http://model", status=500)
        return turn(said("done"))

    async def run():
        told = []
        feed = TaskFeed()
        feed.put([task(0)])
        async with (
            serving_counter() as (url, _),
            collecting(ScriptedEndpoint(fails_once), url, concurrency=1) as collector,
            aclosing(
                collector.groups(feed, group_size=2, told=lambda rollouts, ended: told.append((len(rollouts), ended)))
            ) as groups,
        ):
            group = await anext(groups)
        return told, len(group.retried), len(group.verified)

    assert asyncio.run(run()) == ([(1, 0), (1, 1), (1, 1)], 1, 2)
