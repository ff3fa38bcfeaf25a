"""The learners' stage on a real broker: it publishes, resumes without counting twice, and mends a lost file."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition

from schemas.config import Settings
from schemas.errors import StoreError
from schemas.learning import Basket, ItemsSnapshot, RhythmWeights, Vector, Visit
from schemas.mail import iso
from schemas.release import Snapshot
from schemas.topics import CLUSTERS, ITEMS, RHYTHM, VECTORS
from streams.clusters import stage
from transport.clients import producer, reader

pytestmark = pytest.mark.broker

T = 1_700_000_000.0
MIDDLES = (
    (1.8, 3.5, 2.0, 0.4, 0.2),
    (3.2, 2.7, 1.0, 0.02, 0.2),
    (2.1, 2.8, 1.5, 0.02, 0.6),
    (1.2, 3.3, 3.2, 0.05, 0.25),
    (2.5, 4.6, 2.8, 0.05, 0.25),
)
KINDS: dict[str, Any] = {CLUSTERS: Snapshot, RHYTHM: RhythmWeights, ITEMS: ItemsSnapshot}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "FLUSH", 0.1)
    monkeypatch.setattr(stage, "IDLE", 0.1)
    monkeypatch.setattr(stage, "LOOK", 0.02)


def records(count: int, seed: int = 1) -> list[bytes]:
    """A third each of vectors, visits and baskets."""
    rng, made = random.Random(seed), []
    for n in range(count // 3):
        customer, at = f"u{seed}-{n}", iso(T + n)
        middle = rng.choice(MIDDLES)
        x = rng.gauss(0, 1)
        came = rng.random() < 1 / (1 + math.exp(-x))
        made.append(vector(customer, tuple(rng.gauss(m, 0.1) for m in middle), at))
        made.append(visit(customer, (x, 1.0), came, at))
        made.append(basket(customer, ("milk", rng.choice(("dog food", "nappies"))), at))
    return made


async def publish(settings: Settings, values: list[bytes]) -> None:
    sender = await producer(settings.kafka)
    try:
        for value in values:
            await sender.send(settings.kafka.topic(VECTORS), value=value, partition=0)
        await sender.flush()
    finally:
        await sender.stop()


async def published(settings: Settings, topic: str) -> list[Any]:
    """Everything there, oldest first."""
    tp, found = TopicPartition(settings.kafka.topic(topic), 0), []
    client = await reader(settings.kafka)
    try:
        client.assign([tp])
        await client.seek_to_beginning(tp)
        end = (await client.end_offsets([tp]))[tp]
        while await client.position(tp) < end:
            for batch in (await client.getmany(timeout_ms=200)).values():
                found += [msgspec.json.decode(record.value, type=KINDS[topic]) for record in batch if record.value is not None]
    finally:
        await client.stop()
    return found


async def newest(settings: Settings, topic: str) -> Any:
    found = await published(settings, topic)
    return found[-1] if found else None


async def committed(settings: Settings) -> int | None:
    client = await reader(settings.kafka, group_id=settings.kafka.topic(stage.GROUP))
    try:
        return await client.committed(TopicPartition(settings.kafka.topic(VECTORS), 0))
    finally:
        await client.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(90):
        while not await condition():
            await asyncio.sleep(0.1)


async def learned(settings: Settings, each: int) -> None:
    """Until all three have published that they learned ``each`` records."""

    async def done() -> bool:
        found = [await newest(settings, topic) for topic in KINDS]
        return all(one is not None and one.learned == each for one in found)

    await until(done)


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(stage.serve(settings, stop))
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        stop.set()
        await task


def file_of(settings: Settings) -> Path:
    return Path(settings.home) / "learners" / "state.msgpack"


async def test_it_learns_publishes_commits_and_resumes_without_counting_twice(settings: Settings) -> None:
    await publish(settings, [*records(900), b"no record", b""])
    async with serving(settings):
        await learned(settings, 300)
    snapshot: Snapshot = await newest(settings, CLUSTERS)
    assert 1 < len(snapshot.clusters) <= 5
    assert dict((await newest(settings, ITEMS)).popularity)["milk"] == 1.0
    assert await committed(settings) == 902
    await publish(settings, records(300, seed=2))
    async with serving(settings):
        await learned(settings, 400)
    epochs = [made.epoch for made in await published(settings, CLUSTERS)]
    assert epochs == list(range(1, len(epochs) + 1))
    assert {cluster.id for cluster in snapshot.clusters} == {cluster.id for cluster in (await newest(settings, CLUSTERS)).clusters}


async def test_a_kill_between_publishing_and_committing_counts_nothing_twice(settings: Settings) -> None:
    await publish(settings, records(600))
    async with serving(settings):
        await learned(settings, 200)
    before = file_of(settings).read_bytes()
    await publish(settings, records(300, seed=2))
    async with serving(settings):
        await learned(settings, 300)
    # As a crash leaves it: published and committed further than the file knows.
    file_of(settings).write_bytes(before)
    await publish(settings, records(300, seed=3))
    async with serving(settings):
        await learned(settings, 400)
    epochs = [made.epoch for made in await published(settings, RHYTHM)]
    assert epochs == sorted(set(epochs))


async def test_a_lost_file_is_learned_anew_and_the_names_stay(settings: Settings) -> None:
    await publish(settings, records(900))
    async with serving(settings):
        await learned(settings, 300)
    before = await newest(settings, CLUSTERS)
    file_of(settings).unlink()
    await publish(settings, records(90, seed=2))
    async with serving(settings):

        async def again() -> bool:
            found = await newest(settings, RHYTHM)
            return bool(found.learned == 330)

        await until(again)
    after = await newest(settings, CLUSTERS)
    assert after.epoch > before.epoch
    assert {cluster.id for cluster in after.clusters} == {cluster.id for cluster in before.clusters}


async def test_a_torn_file_is_refused_in_one_line(settings: Settings) -> None:
    file_of(settings).parent.mkdir(parents=True)
    file_of(settings).write_bytes(b"\x93torn")
    await publish(settings, records(3))
    with pytest.raises(StoreError, match=r"can't be read .* delete it"):
        await stage.serve(settings, asyncio.Event())


async def test_two_workers_never_write_the_same_file(settings: Settings) -> None:
    await publish(settings, records(300))
    stop = asyncio.Event()
    task = asyncio.create_task(stage.serve(settings, stop))

    async def written() -> bool:
        return file_of(settings).exists()

    await until(written)
    file_of(settings).unlink()
    file_of(settings).write_bytes(b"another worker's")
    await publish(settings, records(300, seed=2))
    with pytest.raises(StoreError, match="another worker"):
        await task
    assert file_of(settings).read_bytes() == b"another worker's"


def vector(customer: str, values: tuple[float, ...], at: str) -> bytes:
    return msgspec.json.encode(Vector(customer=customer, values=values, at=at))


def visit(customer: str, features: tuple[float, ...], came: bool, at: str) -> bytes:
    return msgspec.json.encode(Visit(customer=customer, features=features, labels=(came, came, came), at=at))


def basket(customer: str, names: tuple[str, ...], at: str) -> bytes:
    return msgspec.json.encode(
        Basket(customer=customer, new=names, owned=(), products={name: (f"{name}-1",) for name in names}, at=at, first_seen=T)
    )
