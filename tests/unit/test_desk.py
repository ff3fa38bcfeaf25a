"""The sender's desk: what a wall clock that is set back does to drafts that wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.mail import Draft, Facts, Intent, Source
from streams.desk import Desk, Job, wait
from streams.ledger import Ledger


def _desk() -> tuple[Desk, Job]:
    intent = Intent("i", "c", "welcome", "1", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", "c0", Facts(), Source("e", 0, 0), "")
    desk = Desk(0, Ledger("wall"))
    desk.add(7, Draft(intent, "Hi", "template", "guided", "base", 1))
    (job,) = desk.take(10, 1000.0)
    return desk, job


def test_a_wait_of_a_moment_stays_one_when_the_clock_goes_back() -> None:
    desk, job = _desk()
    desk.sleep(job, 1000.5)
    assert desk.take(10, 1000.2) == []
    assert desk.take(10, 1000.0) == []  # a clock's jitter
    assert desk.take(10, 1000.0 - 3600.0) == [job]  # set back: asked anew, not in an hour
    desk.sleep(job, -2000.0)
    assert desk.take(10, -2600.5) == []
    assert desk.take(10, -1999.0) == [job]


def test_a_gate_record_that_cannot_be_read_stops_nobody() -> None:
    ledger = Ledger("wall")
    bad: list[Any] = [b"", b"{", b"[1]", b'{"kind":"nobody"}', None]
    for value in bad:
        ledger.gate(value)
    assert ledger.standings == {}


async def test_a_wait_that_is_cancelled_in_the_event_s_turn_ends() -> None:
    """A desk that outlives its cancellation keeps a failed worker half alive for ever: nobody starts it afresh."""
    event = asyncio.Event()
    task = asyncio.create_task(wait(event, 60.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    event.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
