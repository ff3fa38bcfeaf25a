"""The sender's queue: what a wall clock that is set back does to drafts that wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.mail import Draft, Facts, Intent, Source
from streams.sender.draft_queue import DraftQueue, PendingDraft
from streams.sender.group_commit import GroupCommit
from streams.sender.ledger import Ledger, delivery_of
from streams.tasks import wait


def _queue() -> tuple[DraftQueue, PendingDraft]:
    intent = Intent("i", "c", "welcome", "1", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", "c0", Facts(), Source("e", 0, 0), "")
    queue = DraftQueue(0, Ledger("wall"), GroupCommit(None, 0))
    queue.add(7, Draft(intent, "Hi", "template", "guided", "base", 1))
    (job,) = queue.take(10, 1000.0)
    return queue, job


def test_a_wait_of_a_moment_stays_one_when_the_clock_goes_back() -> None:
    queue, job = _queue()
    queue.sleep(job, 1000.5)
    assert queue.take(10, 1000.2) == []
    assert queue.take(10, 1000.0) == []  # a clock's jitter
    assert queue.take(10, 1000.0 - 3600.0) == [job]  # set back: asked anew, not in an hour
    queue.sleep(job, -2000.0)
    assert queue.take(10, -2600.5) == []
    assert queue.take(10, -1999.0) == [job]


def test_a_gate_record_that_cannot_be_read_stops_nobody() -> None:
    ledger = Ledger("wall")
    bad: list[Any] = [b"", b"{", b"[1]", b'{"kind":"nobody"}', None]
    for value in bad:
        ledger.gate(value)
    assert ledger.standings == {}


async def test_a_long_life_remembers_no_more_than_a_takeover_does() -> None:
    """Outcomes, and mails under the cap, for 31 days; a mail that ended is no more on the queue."""

    class Claimer:
        @contextlib.asynccontextmanager
        async def transaction(self) -> AsyncIterator[None]:
            yield

        async def send(self, *_: object) -> None: ...

    days = 0.0
    ledger = Ledger("wall", lambda: days * 86400.0)
    queue = DraftQueue(0, ledger, GroupCommit(Claimer(), 0))
    for n in range(2000):
        days = n / 10
        intent = Intent(
            f"i{n}", f"c{n % 7}", "welcome", "1", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", "c0", Facts(), Source("e", 0, 0), ""
        )
        queue.add(n, Draft(intent, "Hi", "template", "guided", "base", 1))
        (job,) = queue.take(10, 1000.0)
        await queue.write("deliveries", delivery_of(job.draft, "sent", at="2024-01-01T00:00:00Z"))
        queue.done(job)
        if n == 300:
            assert ledger.history("c0", "").sends and ledger.history("c0", "i0").ended
    assert len(ledger.ended) == 311 and "i1999" in ledger.ended and "i1688" not in ledger.ended
    assert sum(len(ledger.history(f"c{n}", "").sends) for n in range(7)) == 311
    assert len(queue) == 0 and queue.committable() == 2000


async def test_a_wait_that_is_cancelled_in_the_event_s_turn_ends() -> None:
    """A queue that outlives its cancellation keeps a failed worker half alive for ever: nobody starts it afresh."""
    event = asyncio.Event()
    task = asyncio.create_task(wait(event, 60.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    event.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
