"""Group commit: who meets shares a transaction and its fate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from aiokafka.errors import IllegalOperation, ProducerFenced

from streams.sender.group_commit import GroupCommit
from transport.batches import ProducerBatches


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


async def started(fenced: GroupCommit, *values: bytes) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(fenced.write([record(value)])) for value in values]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_what_is_written_meanwhile_shares_the_next_transaction() -> None:
    producer = Producer()
    fenced = GroupCommit(producer, 3)
    (first,) = await started(fenced, b"1")
    later = await started(fenced, b"2", b"3", b"4")
    assert producer.written == [[b"1"]] and not first.done()
    producer.open.set()
    await asyncio.gather(first, *later)
    assert producer.written == [[b"1"], [b"2", b"3", b"4"]]


async def test_nobody_goes_on_after_a_transaction_that_failed() -> None:
    producer = Producer()
    fenced = GroupCommit(producer, 3)
    together = await started(fenced, b"1")
    producer.error = RuntimeError("fenced")
    together += await started(fenced, b"2", b"3")
    producer.open.set()
    assert all(isinstance(end, RuntimeError) for end in await asyncio.gather(*together, return_exceptions=True))


async def test_whoever_is_cancelled_takes_nobody_along() -> None:
    producer = Producer()
    fenced = GroupCommit(producer, 3)
    (first,) = await started(fenced, b"1")
    leader, follower = await started(fenced, b"2", b"3")
    first.cancel()
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    producer.open.set()
    await follower
    assert producer.written == [[b"1"], [b"2", b"3"]]


class Overtaken:
    """As aiokafka does when another fences this producer between two sends: it tells why only to the first one's future."""

    def __init__(self) -> None:
        self.first: asyncio.Future[None] | None = None

    async def send(self, *_: object, **__: object) -> asyncio.Future[None]:
        if self.first is not None:
            self.first.set_exception(ProducerFenced())
            raise IllegalOperation("Can't send messages while not in transaction")
        self.first = asyncio.get_running_loop().create_future()
        return self.first

    send_batch = send

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield

    def create_batch(self) -> MagicMock:
        return MagicMock()


async def test_who_is_fenced_between_two_sends_is_told_so() -> None:
    fenced = GroupCommit(Overtaken(), 3)
    with pytest.raises(ProducerFenced):
        await fenced.write([record(b"1"), record(b"2")])
    box = ProducerBatches(cast(Any, Overtaken()))
    box.add("t", 0, b"k", b"1")
    box.add("t", 1, b"k", b"2")
    with pytest.raises(ProducerFenced):
        await box.send()
