"""Batches as messages on a real broker: order, commits, rebalances, crashes of a handler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from aiokafka import TopicPartition

from schemas.config import Settings
from schemas.topics import EVENTS, FEEDBACK
from streams.faust.app import Batch, BatchApp
from transport.clients import producer, reader

pytestmark = pytest.mark.broker


async def until(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "condition did not come true"
        await asyncio.sleep(0.02)


async def fill(settings: Settings, count: int, topic: str = EVENTS, start: int = 0) -> None:
    sender = await producer(settings.kafka)
    try:
        for number in range(start, start + count):
            await sender.send(settings.kafka.topic(topic), value=b"%d" % number, partition=number % 2)
        await sender.flush()
    finally:
        await sender.stop()


async def committed(settings: Settings, group: str) -> dict[int, int | None]:
    client = await reader(settings.kafka, group_id=settings.kafka.topic(group))
    try:
        return {p: await client.committed(TopicPartition(settings.kafka.topic(EVENTS), p)) for p in (0, 1)}
    finally:
        await client.stop()


async def test_every_record_comes_once_in_order_and_is_committed(settings: Settings) -> None:
    seen: dict[int, list[int]] = {0: [], 1: []}
    revoked: list[int] = []

    async def handle(batch: Batch) -> None:
        seen[batch.partition] += [int(r.value) for r in batch.records]
        batch.done()

    async def gone(topic: str, partition: int) -> None:
        revoked.append(partition)

    await fill(settings, 2000)
    app = BatchApp("once", settings.kafka, [settings.kafka.topic(EVENTS)], handle, on_revoked=gone)
    await app.start()
    await until(lambda: len(seen[0]) + len(seen[1]) >= 2000)
    await fill(settings, 100, start=2000)
    await until(lambda: len(seen[0]) + len(seen[1]) >= 2100)
    await app.stop()
    assert seen[0] == list(range(0, 2100, 2))
    assert seen[1] == list(range(1, 2100, 2))
    assert await committed(settings, "once") == {0: 1050, 1: 1050}
    assert sorted(revoked) == [0, 1]


async def test_what_is_not_done_is_read_again_after_a_restart(settings: Settings) -> None:
    await fill(settings, 100)
    first: list[Batch] = []

    async def hold(batch: Batch) -> None:
        first.append(batch)

    app = BatchApp("again", settings.kafka, [settings.kafka.topic(EVENTS)], hold, grace=0.1)
    await app.start()
    await until(lambda: sum(len(b.records) for b in first) >= 100)
    await app.stop()
    second: list[int] = []

    async def take(batch: Batch) -> None:
        second.extend(int(r.value) for r in batch.records)
        batch.done()

    app = BatchApp("again", settings.kafka, [settings.kafka.topic(EVENTS)], take)
    await app.start()
    await until(lambda: len(second) >= 100)
    await app.stop()
    assert sorted(second) == list(range(100))


async def test_ready_means_recovered_and_full_memory_pauses_fetching(settings: Settings) -> None:
    await fill(settings, 100)
    held: list[Batch] = []
    recovered = asyncio.Event()

    async def recover(topic: str, partition: int) -> None:
        await recovered.wait()

    async def hold(batch: Batch) -> None:
        held.append(batch)

    def told(series: str) -> float:
        return {name: figure for name, _, figure in app.metrics("intake")}[series]

    app = BatchApp("ready", settings.kafka, [settings.kafka.topic(EVENTS)], hold, on_assigned=recover, buffer=1, grace=1.0)
    assert not app.ready
    await app.start()
    await until(lambda: told("mailtide_stage_partitions") == 2 and app.joined)
    assert not app.ready
    recovered.set()
    await until(lambda: app.ready and len(held) == 2)
    assert told("mailtide_fetch_paused") == 2
    for batch in held:
        batch.done()
    await until(lambda: told("mailtide_fetch_paused") == 0)
    assert told("mailtide_fetch_pauses_total") >= 2
    await app.stop()
    assert not app.ready


async def test_an_error_in_a_handler_reaches_wait(settings: Settings) -> None:
    await fill(settings, 10)

    async def handle(batch: Batch) -> None:
        raise ValueError("no")

    app = BatchApp("error", settings.kafka, [settings.kafka.topic(EVENTS)], handle)
    await app.start()
    with pytest.raises(ValueError, match="no"):
        await app.wait(asyncio.Event())
    await app.stop()


async def test_two_members_share_both_topics_by_partition_and_hand_over_whole(settings: Settings) -> None:
    await fill(settings, 1000)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    topics = [settings.kafka.topic(EVENTS), settings.kafka.topic(FEEDBACK)]

    def member(name: str) -> BatchApp:
        async def handle(batch: Batch) -> None:
            await asyncio.sleep(0.001)
            if batch.topic == topics[0]:
                seen[name] += [int(r.value) for r in batch.records]
            batch.done()

        return BatchApp("pair", settings.kafka, topics, handle)

    one, two = member("a"), member("b")
    await one.start()
    await until(lambda: len(one.assignment) == 4 and len(seen["a"]) >= 1000)
    await two.start()
    await until(lambda: len(one.assignment) == len(two.assignment) == 2, 60)
    assert {p for _, p in one.assignment}.isdisjoint({p for _, p in two.assignment})
    await fill(settings, 1000, start=1000)
    await until(lambda: len(seen["a"]) + len(seen["b"]) >= 2000)
    await two.stop()
    await fill(settings, 1000, start=2000)
    await until(lambda: len(seen["a"]) + len(seen["b"]) >= 3000, 60)
    await one.stop()
    assert sorted(seen["a"] + seen["b"]) == list(range(3000))
