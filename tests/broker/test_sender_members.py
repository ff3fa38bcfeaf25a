"""Any number of senders share the partitions: drafts and gate of one number always lie with one member."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from schemas.config import Settings
from streams.sender import Sender
from tests.broker.test_sender import bench, draft_for, know, until, with_smtp

pytestmark = pytest.mark.broker


async def test_a_third_sender_of_two_partitions_does_no_harm(settings: Settings) -> None:
    local, names = with_smtp(settings, 9), [f"c{n}" for n in range(8)]
    know(local, *names)
    stop, senders = asyncio.Event(), [Sender(local, f"s{n}") for n in range(3)]
    async with bench(local) as b:
        for name in names:
            await b.standing(name, consent=False)
            await b.draft(draft_for(name))
        await asyncio.gather(*(one.start() for one in senders))
        running = [asyncio.create_task(one.run(stop)) for one in senders]
        try:
            await until(lambda: any(task.done() for task in running) or sorted(n for one in senders for n in one.desks) == [0, 1])
            seen = await b.outcomes(len(names))
            assert [task for task in running if task.done()] == []
            assert {one.reason for one in seen.values()} == {"no_consent"}
        finally:
            stop.set()
            for task, one in zip(running, senders, strict=True):
                with contextlib.suppress(Exception):
                    await task
                await one.close()
