"""Group commit: who meets shares a transaction and its fate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from streams.fenced import Fenced


class Producer:
    """Transactions that end when they are let, or fail."""

    def __init__(self) -> None:
        self.written: list[list[bytes]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        self.written.append([])
        yield
        await self.open.wait()
        if self.error is not None:
            raise self.error

    async def send(self, topic: str, value: bytes, key: bytes, partition: int) -> None:
        assert (topic, key, partition) == ("t", b"k", 3)
        self.written[-1].append(value)


def record(value: bytes) -> tuple[str, bytes, bytes]:
    return "t", b"k", value


async def started(fenced: Fenced, *values: bytes) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(fenced.write([record(value)])) for value in values]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_what_is_written_meanwhile_shares_the_next_transaction() -> None:
    producer = Producer()
    fenced = Fenced(producer, 3)
    (first,) = await started(fenced, b"1")
    later = await started(fenced, b"2", b"3", b"4")
    assert producer.written == [[b"1"]] and not first.done()
    producer.open.set()
    await asyncio.gather(first, *later)
    assert producer.written == [[b"1"], [b"2", b"3", b"4"]]


async def test_nobody_goes_on_after_a_transaction_that_failed() -> None:
    producer = Producer()
    fenced = Fenced(producer, 3)
    together = await started(fenced, b"1")
    producer.error = RuntimeError("fenced")
    together += await started(fenced, b"2", b"3")
    producer.open.set()
    assert all(isinstance(end, RuntimeError) for end in await asyncio.gather(*together, return_exceptions=True))


async def test_whoever_is_cancelled_takes_nobody_along() -> None:
    producer = Producer()
    fenced = Fenced(producer, 3)
    (first,) = await started(fenced, b"1")
    leader, follower = await started(fenced, b"2", b"3")
    first.cancel()
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    producer.open.set()
    await follower
    assert producer.written == [[b"1"], [b"2", b"3"]]
