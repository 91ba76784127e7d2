"""The thread that plays while a training waits."""

import asyncio
import gc
import socket

from gym_bridge.rollouts.event_loop import EVENTS_A_TURN, MIDDLE, NEVER, YOUNG
from gym_bridge.trainers.loop_thread import LoopThread


def test_its_turns_are_short_and_full_collections_of_garbage_few_until_it_is_closed():
    before = gc.get_threshold()
    thread = LoopThread()
    try:
        assert gc.get_threshold() == (YOUNG, MIDDLE, NEVER)
        assert thread.run(served_in_the_first_turn(3 * EVENTS_A_TURN)) <= EVENTS_A_TURN
    finally:
        thread.close()
    assert gc.get_threshold() == before
    thread.close()
    assert gc.get_threshold() == before


async def served_in_the_first_turn(num_sockets: int) -> int:
    """How many of so many sockets, all of them ready, are served before a callback that waits comes up."""
    loop, served, count = asyncio.get_running_loop(), [], 0
    pairs = [socket.socketpair() for _ in range(num_sockets)]
    for ours, theirs in pairs:
        loop.add_reader(ours, served.append, ours)
        theirs.send(b"x")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    count = len(served)
    for ours, theirs in pairs:
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
    return count
