"""Waiting for tasks and events with an end to it: what every stage does while it stops or idles."""

from __future__ import annotations

import asyncio
import contextlib


async def finish(task: asyncio.Task[None], seconds: float) -> None:
    """Let a task finish; cancel it after that many seconds, and give it as long again."""
    for _ in range(2):
        if task.done() or (await asyncio.wait([task], timeout=seconds))[0]:
            return
        task.cancel()


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, but no longer than that.

    Not ``asyncio.wait_for``: before Python 3.12 it swallows a cancellation that comes in the same turn as the event or the timeout.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
