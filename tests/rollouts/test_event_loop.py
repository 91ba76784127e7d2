"""The event loop of a process that plays."""

import asyncio
import gc
import socket

from gym_bridge.rollouts import event_loop


def test_a_turn_of_the_loop_serves_few_sockets_and_later_turns_the_others():
    served_in: list[int] = []

    async def many_ready() -> None:
        loop = asyncio.get_running_loop()
        pairs = [socket.socketpair() for _ in range(3 * event_loop.EVENTS_A_TURN)]
        turn = 0

        def read(end: socket.socket) -> None:
            end.recv(1)
            served_in.append(turn)

        for ours, theirs in pairs:
            ours.setblocking(False)
            loop.add_reader(ours, read, ours)
            theirs.send(b"x")
        while len(served_in) < len(pairs):
            turn += 1
            await asyncio.sleep(0)
        for ours, theirs in pairs:
            loop.remove_reader(ours)
            ours.close()
            theirs.close()

    event_loop.run(many_ready())
    sizes = [served_in.count(turn) for turn in sorted(set(served_in))]
    assert sum(sizes) == 3 * event_loop.EVENTS_A_TURN
    assert max(sizes) <= event_loop.EVENTS_A_TURN


def test_full_collections_are_rationed_while_it_runs_and_as_before_afterwards():
    before = gc.get_threshold()

    async def thresholds() -> tuple[int, int, int]:
        return gc.get_threshold()

    assert event_loop.run(thresholds())[2] == event_loop.NEVER
    assert gc.get_threshold() == before
