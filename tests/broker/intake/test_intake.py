"""Intake on a real broker: counts are exact, dead letters whole, strays moved home, the watermark reaches the end."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.config import Settings
from schemas.mail import GateRecord, Intent, Standing, Watermark, decoder, iso, seconds
from schemas.topics import CUSTOMERS, DEAD_LETTERS, EVENTS, GATE, INTENTS
from streams.intake.stage import Intake, run
from streams.intake.store import CLOCK
from streams.profiles import Profiles
from tests.broker.intake import intake_double
from tests.paths import ROOT
from transport.clients import partition_of, producer, reader

pytestmark = pytest.mark.broker
T0 = seconds("2025-03-01T12:00:00Z")
ROOT = ROOT


def event(number: int, customer: str, **more: Any) -> bytes:
    body = {
        "messageId": f"m{number}",
        "type": "track",
        "event": "Product Viewed",
        "userId": customer,
        "timestamp": iso(T0 + number),
        **more,
    }
    return json.dumps({k: v for k, v in body.items() if v is not ...}).encode()


async def publish(settings: Settings, records: list[tuple[bytes | None, bytes | None, int]], topic: str = EVENTS) -> None:
    """(key, value, partition) each."""
    client = await producer(settings.kafka, linger_ms=5)
    try:
        sent = [await client.send(settings.kafka.topic(topic), key=k, value=v, partition=p) for k, v, p in records]
        await asyncio.gather(*sent)
    finally:
        await client.stop()


def home(customer: str) -> int:
    return partition_of(customer.encode(), 2)


async def everything(settings: Settings, topic: str, isolation: str = "read_committed") -> list[Any]:
    client = await reader(settings.kafka, isolation_level=isolation)
    try:
        name = settings.kafka.topic(topic)
        tps = [TopicPartition(name, p) for p in range(1 if topic == DEAD_LETTERS else 2)]
        client.assign(tps)
        ends = await client.end_offsets(tps)
        found: list[Any] = []
        for tp in tps:
            client.seek(tp, 0)
        while any([await client.position(tp) < ends[tp] for tp in tps]):
            for records in (await client.getmany(timeout_ms=200)).values():
                found.extend(records)
        return found
    finally:
        await client.stop()


async def until(condition: Callable[[], Awaitable[bool]], timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < end, "condition did not come true"
        await asyncio.sleep(0.05)


async def applied(settings: Settings) -> dict[int, int]:
    """The newest watermark of each partition."""
    gate = decoder(GateRecord)
    marks: dict[int, int] = {0: 0, 1: 0}
    for record in await everything(settings, GATE):
        mark = gate.decode(record.value)
        if isinstance(mark, Watermark):
            assert mark.partition == record.partition
            assert mark.offset >= marks[mark.partition], "a watermark went back"
            marks[mark.partition] = mark.offset
    return marks


async def caught_up(settings: Settings) -> bool:
    name = settings.kafka.topic(EVENTS)
    client = await reader(settings.kafka)
    try:
        ends = await client.end_offsets([TopicPartition(name, 0), TopicPartition(name, 1)])
    finally:
        await client.stop()
    return await applied(settings) == {tp.partition: end for tp, end in ends.items()}


async def states(settings: Settings) -> dict[str, dict[str, Any]]:
    """What the changelog says, last record of each customer."""
    found: dict[str, dict[str, Any]] = {}
    for record in await everything(settings, CUSTOMERS):
        if record.key != CLOCK:
            assert record.partition == home(record.key.decode())
            found[record.key.decode()] = json.loads(record.value)
    return found


@asynccontextmanager
async def serving(settings: Settings, worker: str = "w0") -> AsyncIterator[Intake]:
    stop, stage = asyncio.Event(), intake_double.intake(settings, worker)
    task = asyncio.create_task(run(stage, stop))
    try:
        yield stage
    finally:
        stop.set()
        await task


async def test_counts_repeats_strays_and_the_watermark(settings: Settings) -> None:
    customers = [f"c{n}" for n in range(20)]
    records: list[tuple[bytes | None, bytes | None, int]] = []
    for number in range(400):
        customer = customers[number % 20]
        records.append((customer.encode(), event(number, customer), home(customer)))
    records += [(b"c1", event(1, "c1"), home("c1"))] * 3  # a producer's repeats
    records += [(None, event(1000 + n, "c2"), 1 - home("c2")) for n in range(5)]  # strays
    records += [(b"other", event(2000 + n, "c3", messageId=...), 1 - home("c3")) for n in range(4)]  # strays without an id
    await publish(settings, records)
    async with serving(settings) as stage:
        await until(lambda: caught_up(settings))
    assert stage.counts["read"] == 400 + 3 + 9
    assert stage.counts["forwarded"] == 9
    assert stage.counts["repeats"] == 3
    counted = {customer: state["n"] for customer, state in (await states(settings)).items()}
    assert counted == {c: 20 + {"c2": 5, "c3": 4}.get(c, 0) for c in customers}
    moved = [r for r in await everything(settings, EVENTS) if dict(r.headers).get("mailtide.forwarded") == b"1"]
    assert len(moved) == 9
    assert all(r.partition == home(r.key.decode()) for r in moved)


async def test_dead_letters_are_whole_and_stop_nothing(settings: Settings) -> None:
    bad: list[tuple[bytes | None, bytes | None, str]] = [
        (b"k1", b"hello", "not_json"),
        (None, b"[]", "not_an_event"),
        (b"k3", event(1, "x", userId=...), "no_customer"),
        (b"k4", event(1, "x", timestamp="yesterday"), "bad_time"),
        (b"k5", event(1, "x", timestamp="2999-01-01T00:00:00Z"), "future"),
        (b"k6", b"x" * 1_500_000, "too_large"),
        (b"k7", None, "unsupported_format"),
        (None, None, "unsupported_format"),
        (b"", b"\x00\x00\x00\x00\x01avro", "unsupported_format"),
    ]
    client = await producer(settings.kafka)
    name = settings.kafka.topic(EVENTS)
    for number, (key, value, why) in enumerate(bad):
        headers = [("why", why.encode()), ("traceparent", b"00-1")]
        if key is None and value is None:
            batch = client.create_batch()
            batch.append(key=None, value=None, timestamp=None, headers=headers)
            await (await client.send_batch(batch, name, partition=number % 2))
        else:
            await client.send_and_wait(name, key=key, value=value, partition=number % 2, headers=headers)
        await client.send_and_wait(name, key=b"ok", value=event(number, "ok"), partition=home("ok"))
    await client.stop()
    async with serving(settings):
        await until(lambda: caught_up(settings))
    assert (await states(settings))["ok"]["n"] == len(bad)
    dead = await everything(settings, DEAD_LETTERS)
    original = {(r.partition, r.offset): r for r in await everything(settings, EVENTS)}
    assert len(dead) == len(bad)
    for record in dead:
        headers = dict(record.headers)
        source = original[int(headers["__connect.errors.partition"]), int(headers["__connect.errors.offset"])]
        assert (record.key, record.value, record.timestamp) == (source.key, source.value, source.timestamp)
        assert record.headers[: len(source.headers)] == source.headers
        assert headers["mailtide.reason"] == headers["why"]
        assert headers["__connect.errors.topic"].decode() == name
        assert headers["__connect.errors.exception.class.name"] and headers["__connect.errors.exception.message"]


async def test_timers_profiles_and_a_takeover_without_the_store(settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, clock="event")
    order = event(0, "c1", event="Order Completed", properties={"total": 5})
    who = event(1, "c1", type="identify", traits={"email": "ann@shop.example", "firstName": "Ann"})
    await publish(settings, [(b"c1", order, home("c1")), (b"c1", who, home("c1"))])
    async with serving(settings):
        await until(lambda: caught_up(settings))
    assert await everything(settings, INTENTS) == []
    profiles = Profiles.open(settings)
    assert profiles.get_many(["c1"])["c1"].first_name == "Ann"
    profiles.close()
    shutil.rmtree(Path(settings.home) / "state")
    neighbour = next(f"n{n}" for n in range(100) if home(f"n{n}") == home("c1"))
    await publish(settings, [(None, event(4000, neighbour), home("c1"))])
    async with serving(settings, "w7"):
        await until(lambda: caught_up(settings))
    intents = [decoder(Intent).decode(r.value) for r in await everything(settings, INTENTS)]
    assert [(i.customer, seconds(i.due)) for i in intents] == [("c1", T0 + intake_double.DELAY)]
    gate = [decoder(GateRecord).decode(r.value) for r in await everything(settings, GATE)]
    assert [g for g in gate if isinstance(g, Standing)] == [Standing("c1", True, True)]


async def test_the_wall_clock_fires_without_events(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_double, "DELAY", 0.3)
    order = event(0, "c1", event="Order Completed", timestamp=iso(time.time()))
    async with serving(settings):
        await publish(settings, [(b"c1", order, home("c1"))])

        async def fired() -> bool:
            return bool(await everything(settings, INTENTS))

        await until(fired)
    assert [decoder(Intent).decode(r.value).customer for r in await everything(settings, INTENTS)] == ["c1"]


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


async def test_counts_are_exact_after_kills(settings: Settings) -> None:
    kafka = msgspec.structs.replace(settings.kafka, session_timeout=6.0)  # a killed member's partitions wait for it
    settings = msgspec.structs.replace(settings, kafka=kafka)
    customers = [f"c{n}" for n in range(300)]
    total = 20_000
    records = [
        (c.encode(), event(n, c, properties={"total": 1}, event="Order Completed"), home(c))
        for n in range(total)
        if (c := customers[n * 7 % 300])
    ]
    expected = Counter(customers[n * 7 % 300] for n in range(total))
    command = [sys.executable, "-m", "tests.broker.intake.intake_double", msgspec.json.encode(settings).decode()]

    async def start(worker: str) -> asyncio.subprocess.Process:
        made = await asyncio.create_subprocess_exec(*command, worker, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        stack.push_async_callback(made.wait)
        stack.callback(_kill, made)
        return made

    async def moving(beyond: int) -> bool:
        return sum((await applied(settings)).values()) > beyond

    async with AsyncExitStack() as stack:  # whatever fails, no worker outlives the test
        feeding = asyncio.create_task(publish(settings, records[: total // 2]))
        worker = await start("w0")
        await until(lambda: moving(100))
        worker.kill()
        await worker.wait()
        reached = sum((await applied(settings)).values())
        worker, other = await start("w0"), await start("w1")
        await feeding
        await publish(settings, records[total // 2 :])
        await until(lambda: moving(reached + 2000))
        worker.kill()
        await worker.wait()
        shutil.rmtree(Path(settings.home) / "state" / "intake-w0")
        await until(lambda: caught_up(settings), 90)
        other.send_signal(signal.SIGTERM)
        assert await other.wait() == 0
    found = await states(settings)
    assert {customer: state["n"] for customer, state in found.items()} == dict(expected)
    assert sum(state["sum"] for state in found.values()) == total


async def test_who_lost_a_partition_without_knowing_can_say_nothing_any_more(settings: Settings) -> None:
    """Neither states nor consent nor intents: the new owner may know of an objection, or of an order."""
    settings = msgspec.structs.replace(settings, clock="event")
    stage, stop = intake_double.intake(settings), asyncio.Event()
    task = asyncio.create_task(run(stage, stop))
    await publish(settings, [(b"c1", event(1, "c1", event="Order Completed"), home("c1"))])
    await until(lambda: caught_up(settings))
    usurper = await producer(settings.kafka, transactional_id=f"{settings.kafka.topic(CUSTOMERS)}-{home('c1')}")
    late = event(7200, "c1", event="Order Completed")  # makes the first order's timer due as well
    who = event(2, "c1", type="identify", traits={"email": "ann@shop.example"})
    await publish(settings, [(b"c1", who, home("c1")), (b"c1", late, home("c1"))])
    with pytest.raises(KafkaError):
        await task
    await usurper.stop()
    gate = [decoder(GateRecord).decode(r.value) for r in await everything(settings, GATE, isolation="read_uncommitted")]
    assert not [told for told in gate if isinstance(told, Standing)]
    assert await everything(settings, INTENTS) == []
    assert (await states(settings))["c1"]["n"] == 1
    del stage, task
    gc.collect()  # a crashed app is full of cycles, whose finalizers must not run in the midst of something else
