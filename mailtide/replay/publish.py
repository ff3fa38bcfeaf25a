"""Publish a source to ``customer.events``: keyed and partitioned as a shop's own producer would, in time order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from mailtide.demo.simulated_readers import Readers
from mailtide.replay.sources.opening import open_source
from schemas import topics
from schemas.config import Settings
from schemas.errors import KafkaUnavailable, TopicMismatch
from transport.clients import partition_of, producer

BATCH_BYTES = 1 << 18  # of one partition's batch: large enough to be cheap, small enough to arrive soon
IN_FLIGHT = 64  # batches that wait for their acknowledgement
_SOON = 0.005  # seconds: what is due within them needs no sleep, and lies no longer than that in a batch
_SETTLING = 0.5  # seconds between two looks for the topic
QUIET = 15.0  # seconds without a new mail after which simulated readers expect no more
_EVERY = 200  # events between two reports of progress


class Summary(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was published and acknowledged. ``reader``: what simulated readers did, whose events aren't counted in ``events``."""

    events: int
    customers: int
    reader: dict[str, Any] | None = None


async def replay(
    settings: Settings,
    source: str,
    days: int | None,
    customers: int | None,
    *,
    speed: float | None = None,
    progress: Callable[[int], None] | None = None,
    gate: Callable[[float], Awaitable[None]] | None = None,
    readers: Readers | None = None,
) -> Summary:
    """Publish ``source``; returns when every event is acknowledged by all in-sync replicas.

    ``gate`` is awaited with the day's start (seconds) before each day that has
    events, once all earlier ones are acknowledged. ``speed`` is event seconds
    per second; None or 0 is as fast as it goes. ``readers`` answer the mails
    that go out meanwhile, each answer before the first event of a later time.
    Raises SourceError, KafkaUnavailable, TopicMismatch.
    """
    opened = open_source(source, days, customers)
    made = await producer(settings.kafka, acks="all", linger_ms=5, max_batch_size=BATCH_BYTES)
    try:
        out = await _Out.to(made, settings.kafka.topic(topics.EVENTS))
        count, people, tomorrow = 0, set(), -float("inf")
        pace = _Pace(speed)
        for at, customer, event in opened.events:
            if gate is not None and at >= tomorrow:
                await out.flush()
                today, tomorrow = _day(at, opened.zone)
                await gate(today)
            wait = pace.wait(at)
            if wait > _SOON:
                await out.flush()
                await asyncio.sleep(wait)
            for answer in readers.due(at) if readers is not None else ():
                await out.add(answer.customer, msgspec.json.encode(answer.event))
            await out.add(customer, msgspec.json.encode(event))
            people.add(customer)
            count += 1
            if progress is not None and count % _EVERY == 0:
                progress(count)
            if count % _EVERY == 0:
                await asyncio.sleep(0)  # the sender shares this loop
        await out.flush()
        if progress is not None:
            progress(count)
    except KafkaError as error:
        raise KafkaUnavailable(f"publishing to {settings.kafka.bootstrap} failed: {error}") from error
    finally:
        await made.stop()
    return Summary(count, len(people), readers.told() if readers is not None else None)


async def answer_rest(settings: Settings, readers: Readers, quiet: float = QUIET) -> int:
    """After the source has ended: publish answers until no new mail was read for ``quiet`` seconds; how many."""
    made = await producer(settings.kafka, acks="all", linger_ms=5)
    try:
        out, count, mails, since = await _Out.to(made, settings.kafka.topic(topics.EVENTS)), 0, -1, time.monotonic()
        while time.monotonic() - since < quiet:
            for answer in readers.due(float("inf")):
                await out.add(answer.customer, msgspec.json.encode(answer.event))
                count += 1
            await out.flush()
            if readers.mails != mails:
                mails, since = readers.mails, time.monotonic()
            await asyncio.sleep(0.1)
    except KafkaError as error:
        raise KafkaUnavailable(f"publishing to {settings.kafka.bootstrap} failed: {error}") from error
    finally:
        await made.stop()
    return count


class _Pace:
    """How long to wait for an event's turn. ``speed`` is event seconds per second."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed or 0.0
        self._began: tuple[float, float] | None = None

    def wait(self, at: float) -> float:
        """Seconds until the event at ``at`` is due."""
        if not self._speed:
            return 0.0
        now = time.monotonic()
        if self._began is None:
            self._began = (now, at)
        return self._began[0] + (at - self._began[1]) / self._speed - now


class _Out:
    """One open batch for each partition; aiokafka's own ``send`` costs several times as much for each record."""

    def __init__(self, made: AIOKafkaProducer, topic: str, partitions: int) -> None:
        self._made, self._topic, self._partitions = made, topic, partitions
        self._open: dict[int, Any] = {}
        self._sent: deque[asyncio.Future[Any]] = deque()

    @classmethod
    async def to(cls, made: AIOKafkaProducer, topic: str) -> _Out:
        for last in (False, False, True):  # a topic just made may not be known to every broker yet
            partitions = (await made.client.fetch_all_metadata()).partitions_for_topic(topic)
            if partitions:
                return cls(made, topic, len(partitions))
            if not last:
                await asyncio.sleep(_SETTLING)
        raise TopicMismatch(f"{topic} is not there; run mailtide topics create")

    async def add(self, customer: str, value: bytes) -> None:
        key = customer.encode()
        partition = partition_of(key, self._partitions)
        batch = self._open.get(partition)
        if batch is None:
            batch = self._open[partition] = self._made.create_batch()
        if batch.append(key=key, value=value, timestamp=None) is None:
            await self._send(partition)
            batch = self._open[partition] = self._made.create_batch()
            batch.append(key=key, value=value, timestamp=None)

    async def flush(self) -> None:
        """Send what is open and wait until all is acknowledged."""
        for partition in list(self._open):
            await self._send(partition)
        while self._sent:
            await self._sent.popleft()

    async def _send(self, partition: int) -> None:
        self._sent.append(await self._made.send_batch(self._open.pop(partition), self._topic, partition=partition))
        while len(self._sent) > IN_FLIGHT:
            await self._sent.popleft()


def _day(at: float, zone: tzinfo) -> tuple[float, float]:
    """Start and end of the day of ``zone`` in which ``at`` lies, seconds."""
    start = datetime.fromtimestamp(at, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    return start.timestamp(), (start + timedelta(days=1)).timestamp()
