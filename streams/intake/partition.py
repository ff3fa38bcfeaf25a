"""One partition of intake: its states, timers and flushes. The flush order is the invariant that makes counts exact.

    the previous flush done -> changelog, gate, intents and feedback acknowledged, within one transaction
    -> outputs acknowledged -> transaction committed -> batch done; the local store follows (``streams.intake.states``)

An intent and the state that knows of it are one transaction, and whoever reads
intents reads committed ones: were an intent public before its state, a crash
between the two would leave a cart mail that the next order knows nothing of.
The other outputs (dead letters, events of other partitions, what the learners
follow) go before the commit: a crash repeats them rather than losing one, and
each is recognised as repeated by whoever reads it. They go after Kafka has
taken a record of this owner's transaction: whoever slept through losing the
partition is refused there. Watermarks need no such fence: they say what was
committed, and the sender takes the highest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from aiokafka import AIOKafkaProducer

from schemas.mail import Watermark, encode
from streams.intake.schedule import Schedule
from streams.intake.states import States
from streams.intake.store import CLOCK, Clock, Store
from transport.batches import ProducerBatches, acknowledged

IN_FLIGHT = 4  # flushes; with one the partition waits for the broker instead of computing
Beside = Mapping[str, Sequence[tuple[bytes, bytes]]]
WATERMARK_EVERY = 0.1  # seconds; the sender waits for them


class Partition:
    """Owned by whoever holds ``lock``; flushes overlap with the next batch's work."""

    def __init__(
        self,
        number: int,
        store: Store,
        changelog: str,
        gate: str,
        producer: AIOKafkaProducer,
        log: AIOKafkaProducer,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.number, self.states, self.lock = number, States(store), asyncio.Lock()
        self.schedule = Schedule()
        self.clock = store.clock  # of what was computed; ``safe`` is of what the changelog has
        self.safe = self.clock
        self._changelog, self._gate, self._producer, self._log, self._fail = changelog, gate, producer, log, fail
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._last: asyncio.Task[None] | None = None
        self._published = Clock(-1, 0.0)
        self._published_at = 0.0
        self._publishing: asyncio.Task[None] | None = None

    async def flush(self, states: dict[str, bytes], beside: Beside, outbox: ProducerBatches, done: Callable[[], None]) -> None:
        """Begin a flush of what was computed; returns as soon as the next batch may be computed.

        ``beside``: what is committed together with the states or not at all, keys and values by topic, in order.
        """
        await self._slots.acquire()
        self._last = asyncio.ensure_future(self._land(states, self.clock, beside, outbox, self._last, done))

    async def _land(
        self,
        states: dict[str, bytes],
        clock: Clock,
        beside: Beside,
        outbox: ProducerBatches,
        before: asyncio.Task[None] | None,
        done: Callable[[], None],
    ) -> None:
        try:
            if before is not None:
                await before
            ours = ProducerBatches(self._log)
            ours.extend(self._changelog, self.number, ((customer.encode(), state) for customer, state in states.items()))
            ours.add(self._changelog, self.number, CLOCK, clock.packed())
            for topic, records in beside.items():
                ours.extend(topic, self.number, records)
            # Also a fence: whoever took this partition over has made it impossible to write here,
            # even for a process that slept through losing it.
            await self._log.begin_transaction()
            batches = await ours.send()
            await acknowledged(batches)
            await acknowledged(await outbox.send())
            await self._log.commit_transaction()
            written = [(batch.result(), count) for batch, count in zip(batches, ours.sizes, strict=True)]
            place = 1 + max(at.offset + count - 1 for at, count in written if at.topic == self._changelog)
            self.states.logged(states, clock, place)
            self.safe = clock
            done()
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self._slots.release()
        self.publish_watermark()

    # -- how far this partition is, for the sender --------------------------------------------------

    def publish_watermark(self) -> None:
        """Let the sender know how far this partition has been applied, now or as soon as the last word is old enough."""
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.ensure_future(self._publish())

    async def _publish(self) -> None:
        wait = self._published_at + WATERMARK_EVERY - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        while self._published != self.safe:
            newest, self._published_at = self.safe, time.monotonic()
            value = encode(Watermark(self.number, newest.offset, newest.event_time))
            try:
                await self._producer.send_and_wait(self._gate, value, key=b"watermark", partition=self.number)
            except Exception as error:
                self._fail(error)
                return
            self._published = newest
            if self._published != self.safe:
                await asyncio.sleep(WATERMARK_EVERY)

    async def skip_to(self, offset: int, done: Callable[[], None]) -> None:
        """Nothing is to be applied before ``offset`` (transaction markers take offsets, too). ``done`` as in ``flush``: a commit follows.

        The changelog hears of it first: a commit ahead of it is how ``streams.intake.store.recover`` knows that it has lost something.
        """
        if offset > self.clock.offset:
            self.clock = Clock(offset, self.clock.event_time)
            await self.flush({}, {}, ProducerBatches(self._producer), done)
        elif 0 < offset <= self.safe.offset:
            done()  # flushed before, but perhaps not committed: this owner may have taken it over

    async def close(self) -> None:
        """Let what is in flight land, then let go of the files."""
        if self._last is not None:
            await asyncio.wait({self._last})
            if not self._last.cancelled():
                self._last.exception()  # told to ``fail`` already
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.wait({self._publishing})
        await self._log.stop()
        self.states.close()
