"""Batches of Kafka records for a stage, on Faust. This folder and ``transport.oversized`` lean on private names.

``tests/unit/streams/faust/test_private_names.py`` fails as soon as one of the names moves.

    app = BatchApp("group", settings.kafka, ["topic"], handle)
    await app.start(); await app.wait(stop); await app.stop()

``handle(batch)`` runs for one batch of a partition at a time, in order, and
may return before the batch is ``done()``, so that flushes overlap with the
next batch's work. A batch that is never ``done()`` is never committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError
from faust.types import TP

from schemas.config import KafkaSettings
from schemas.errors import KafkaUnavailable
from streams.faust.batch import Batch
from streams.faust.consumer import App, app_of, leave
from streams.faust.partition_queue import Handler, Hook, PartitionQueue
from streams.metrics import Value
from streams.progress import WORK, Work
from transport import availability
from transport.availability import Outage

__all__ = ["Batch", "BatchApp"]
MARKERS = 1.0  # seconds between two looks for markers behind the last record
STOP_SECONDS = 15.0  # for Faust to leave its group
log = logging.getLogger(__name__)


class BatchApp:
    """One Faust app in a running event loop: no signals, no web server, nothing declared.

    ``on_assigned(topic, partition)`` runs in the background before the
    partition's first batch; ``on_revoked(topic, partition)`` after its last one
    is done or given up, ``grace`` seconds after the revocation at the latest.
    An exception in any of the three stops the app; ``wait`` raises it.
    ``passes_markers``: transactions' markers behind the last record are committed past by the app itself, for a stage that
    keeps no offset of its own.
    """

    def __init__(
        self,
        group: str,
        kafka: KafkaSettings,
        topics: Sequence[str],
        handle: Handler,
        *,
        on_assigned: Hook | None = None,
        on_revoked: Hook | None = None,
        buffer: int = 4,
        fetch_bytes: int = 1 << 20,
        grace: float = 20.0,
        passes_markers: bool = False,
    ) -> None:
        self.group, self.kafka, self.topics = kafka.topic(group), kafka, tuple(topics)
        self.handle, self.on_assigned, self.on_revoked = handle, on_assigned, on_revoked
        self.buffer, self.fetch_bytes, self.grace = buffer, fetch_bytes, grace
        self.queues: dict[TP, PartitionQueue] = {}
        self.joined, self.pauses = False, 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._faust: App | None = None
        self._passes_markers = passes_markers
        self._measuring: asyncio.Future[None] | None = None
        self._passing: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Join the group; returns when the app runs, which may be before partitions are assigned."""
        self._outage = Outage(self.kafka, self.group)
        self._faust = app_of(self)
        await self._faust.start()
        self._measuring = asyncio.ensure_future(self._measure())
        if self._passes_markers:
            self._passing = asyncio.ensure_future(self._pass_markers())
        WORK[self.group] = self.work

    async def stop(self) -> None:
        """Finish what runs (``grace`` seconds at most), commit, leave the group."""
        app = self._faust
        if app is None:
            return
        WORK.pop(self.group, None)
        if self._measuring is not None:  # None where start() failed: no Kafka answered
            self._measuring.cancel()
        if self._passing is not None:
            self._passing.cancel()
        app.flow_control.suspend()
        if app._consumer is not None:
            app._consumer.stop_flow()
        queues = list(self.queues)
        await self.drain(queues)
        # After an outage of the broker Faust was seen to wait for ever here: no consumer thread answered any more.
        stopping = asyncio.ensure_future(leave(app))
        await asyncio.wait({stopping}, timeout=STOP_SECONDS)
        await self.release(queues)
        self._faust = None
        if stopping.done():
            stopping.result()
        else:
            log.error("consumer did not stop", extra={"group": self.group})

    async def wait(self, stop: asyncio.Event) -> None:
        """Until ``stop``; raises what stopped the app before that."""
        watched: list[asyncio.Future[Any]] = [self.failed, asyncio.ensure_future(stop.wait())]
        if self._faust is not None:
            watched.append(asyncio.ensure_future(self._faust._crashed.wait()))
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in watched[1:]:
                task.cancel()
        if self.failed.done():
            self.failed.result()
        if not stop.is_set() and self._faust is not None:
            reason = self._faust.crash_reason
            raise KafkaUnavailable(
                f"the consumer of group {self.group} stopped ({reason or 'no reason given'}): see that Kafka runs, then start again"
            ) from reason

    def fail(self, error: BaseException) -> None:
        """Stop for good: what is not done stays uncommitted and is read again after a restart."""
        if not self.failed.done():
            self.failed.set_exception(error)

    @property
    def assignment(self) -> set[tuple[str, int]]:
        """The (topic, partition) pairs held now."""
        return {(tp.topic, tp.partition) for tp in self.queues}

    @property
    def ready(self) -> bool:
        """The group is joined, nobody rebalances, and what each partition needs is recovered. From any thread."""
        app = self._faust
        return app is not None and self.joined and not app.rebalancing and all(queue.ready for queue in list(self.queues.values()))

    def metrics(self, stage: str) -> list[Value]:
        """Figures that every stage on this class has."""
        queues = list(self.queues.values())
        return [
            ("mailtide_stage_partitions", (stage,), len(queues)),
            ("mailtide_fetch_paused", (stage,), sum(queue.full for queue in queues)),
            ("mailtide_fetch_pauses_total", (stage,), self.pauses),
        ]

    def work(self) -> dict[str, Work]:
        """By partition, for ``streams.progress``."""
        found = {}
        for queue in [queue for queue in list(self.queues.values()) if queue.ready and not queue.draining]:
            place = f"{queue.tp.topic}/{queue.tp.partition}"
            found[place] = Work(queue.figure, queue.behind or bool(queue.waiting or queue.open))
            due = min([queue.next, *(batch.first for batch in tuple(queue.open))])  # all below is done
            found[f"{place} commits"] = Work(queue.committed, queue.committed < due)
        return found

    async def _measure(self) -> None:
        """Ask the broker, not Faust, what is committed: Faust takes a commit for done that was refused (consumer.py:1080)."""
        while self._faust is not None:
            await asyncio.sleep(availability.MEASURE)
            consumer: Any = self._faust.consumer
            for tp, queue in list(self.queues.items()):
                place = TopicPartition(*tp)
                try:
                    async with asyncio.timeout(availability.MEASURE):
                        end = (await consumer.highwaters(place))[place]
                        position = await consumer.position(place)
                        queue.committed = await self.committed(*tp)
                except (TimeoutError, KafkaConnectionError, KafkaTimeoutError):
                    self._outage.heard(False)
                    break  # the consumer's thread may be what is stuck: the last answers stand
                except Exception:
                    queue.behind = False  # in the middle of a rebalance, or no broker: nothing to blame this worker for
                    continue
                queue.behind = end > (position or 0)
                self._outage.heard(True)

    async def _pass_markers(self) -> None:
        """Commit past what lies behind a partition's last record and is none, or its lag would never be 0."""
        seen: dict[TP, int | None] = {}
        while True:
            await asyncio.sleep(MARKERS)
            for tp, queue in list(self.queues.items()):
                before, seen[tp] = seen.get(tp), await self.idle_position(*tp)
                if (position := seen[tp]) is not None and position == before and position > queue.committed:
                    self.pass_to(tp.topic, tp.partition, position)

    async def end_offsets(self, pairs: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The offset after the last record, asked from the broker."""
        if self._faust is None:
            return {}
        found = await self._faust.consumer.highwaters(*(TopicPartition(*pair) for pair in pairs))
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    async def committed(self, topic: str, partition: int) -> int:
        """The group's committed offset, asked from the broker; 0 where there is none."""
        if self._faust is None:
            return 0
        thread: Any = self._faust.consumer._thread
        return await thread.call_thread(thread._ensure_consumer().committed, TopicPartition(topic, partition)) or 0

    async def idle_position(self, topic: str, partition: int) -> int | None:
        """Where the next fetch starts; None while anything of the partition is on its way or being handled."""
        queue = self.queues.get(TP(topic, partition))
        if self._faust is None or queue is None or queue.draining or self._faust.rebalancing:
            return None
        consumer: Any = self._faust.consumer
        if queue.waiting or queue.open or consumer.given[queue.tp] or consumer.doubt or consumer.seeking:
            return None
        try:
            position: int | None = await asyncio.wait_for(consumer.position(TopicPartition(*queue.tp)), 5.0)
        except (TimeoutError, KafkaError):
            return None
        lost = consumer.doubt or consumer.seeking  # what was dropped is read again: nothing before the position is known to be done
        return None if lost or queue.waiting or queue.open or consumer.given[queue.tp] else position

    def pass_to(self, topic: str, partition: int, offset: int) -> None:
        """Make ``offset`` committable: all before it is done, and since the last batch nothing came but markers of transactions."""
        tp = TP(topic, partition)
        if self._faust is not None and tp in self.queues:
            consumer: Any = self._faust.consumer
            consumer._acked[tp]  # as in ``finish``
            consumer.passed[tp] = offset

    # -- between Faust and the queues ------------------------------------------------------------

    def touch(self, batch: Batch) -> None:
        """Called by ``Batch.touch``: its partition moves."""
        if (queue := self.queues.get(TP(batch.topic, batch.partition))) is not None:
            queue.figure += 1

    def finish(self, batch: Batch) -> None:
        """Called by ``Batch.done``: make the offsets committable and fetch on."""
        queue = self.queues.get(TP(batch.topic, batch.partition))
        if queue is not None:
            queue.close(batch)
        if self._faust is not None and batch.message is not None:
            consumer = self._faust.consumer
            consumer._acked[batch.message.tp]  # a defaultdict: the commit loop looks only at partitions it has heard of
            consumer.ack(batch.message)

    def assign(self, tps: Iterable[TP]) -> None:
        for tp in tps:
            if tp not in self.queues:
                self.queues[tp] = PartitionQueue(self, tp)

    async def drain(self, tps: Iterable[TP]) -> None:
        await asyncio.gather(*(self.queues[tp].drain(self.grace) for tp in tps if tp in self.queues))

    async def release(self, tps: Iterable[TP]) -> None:
        for tp in tps:
            queue = self.queues.pop(tp, None)
            if queue is not None and self.on_revoked is not None:
                await self.on_revoked(tp.topic, tp.partition)
            if queue is not None:
                log.info("partition given up", extra=queue.place)

    def put(self, batch: Batch) -> None:
        queue = self.queues.get(TP(batch.topic, batch.partition))
        if queue is None or queue.draining:
            self.forget(batch)
        else:
            batch.owner = self
            queue.put(batch)

    def forget(self, batch: Batch) -> None:
        """Not ours any more: it must not hold up a rebalance, and without ``done`` it is not committed."""
        if self._faust is not None and batch.message is not None:
            self._faust.consumer._unacked_messages.discard(batch.message)
            batch.message.acked = True

    def pressed(self, tp: TP, full: bool) -> None:
        self.pauses += full
        if self._faust is not None and self._faust._consumer is not None:
            (self._faust.consumer.on_buffer_full if full else self._faust.consumer.on_buffer_drop)(tp)
