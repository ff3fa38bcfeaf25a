"""Faust with a whole fetch as one message: the one file that leans on Faust's and aiokafka's private names.

The ordinary way costs Faust some 200 us an event, most of it in one message,
one event object and one acknowledgement for each record. Here its consumer
yields one message for each (partition, fetch), so that cost is paid once for
thousands of records; Faust keeps membership, assignment, fetching and commits.
``tests/unit/test_batches_private.py`` fails as soon as one of the names moves.

    app = BatchApp("group", settings.kafka, ["topic"], handle)
    await app.start(); await app.wait(stop); await app.stop()

``handle(batch)`` runs for one batch of a partition at a time, in order, and
may return before the batch is ``done()``, so that flushes overlap with the
next batch's work. A batch that is never ``done()`` is never committed.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from schemas.config import KafkaSettings
from schemas.errors import KafkaUnavailable
from streams.kafka import connection
from streams.metrics import Value
from streams.stall import WORK, Work

POLL = 0.1  # seconds a fetch waits before it looks again which partitions want more
FETCH_WAIT_MS = 50  # Faust hard-codes 1500, which made the whole 2.5 times slower
COMMIT_INTERVAL = 0.5  # seconds
STOP_SECONDS = 15.0  # for Faust to leave its group
MEASURE = 5.0  # seconds between two looks at what the broker says of us
log = logging.getLogger(__name__)
QUIET = ("faust", "mode", "aiokafka", "intervaltree")

Handler = Callable[["Batch"], Awaitable[None]]
Hook = Callable[[str, int], Awaitable[None]]


class Batch:
    """The records of one fetch of one partition, as aiokafka's ``ConsumerRecord`` (key, value: bytes or None; offset; headers)."""

    __slots__ = ("_app", "finished", "first", "highwater", "last", "message", "partition", "records", "topic")

    def __init__(self, topic: str, partition: int, records: list[Any], highwater: int) -> None:
        self.topic, self.partition, self.records, self.highwater = topic, partition, records, highwater
        self.first, self.last = records[0].offset, records[-1].offset
        self.finished = False
        self.message: ConsumerMessage | None = None
        self._app: BatchApp | None = None

    def touch(self) -> None:
        """Something of it was done: who waits for ``done`` must not take a long batch for a stuck one."""
        if self._app is not None and (lane := self._app.lanes.get(TP(self.topic, self.partition))) is not None:
            lane.figure += 1

    def done(self) -> None:
        """Everything that follows from these records is safe: their offsets may be committed."""
        if not self.finished:
            self.finished = True
            if self._app is not None:
                self._app.finish(self)


class BatchApp:
    """One Faust app in a running event loop: no signals, no web server, nothing declared.

    ``on_assigned(topic, partition)`` runs in the background before the
    partition's first batch; ``on_revoked(topic, partition)`` after its last one
    is done or given up, ``grace`` seconds after the revocation at the latest.
    An exception in any of the three stops the app; ``wait`` raises it.
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
    ) -> None:
        self.group, self.kafka, self.topics = kafka.topic(group), kafka, tuple(topics)
        self.handle, self.on_assigned, self.on_revoked = handle, on_assigned, on_revoked
        self.buffer, self.fetch_bytes, self.grace = buffer, fetch_bytes, grace
        self.lanes: dict[TP, _Lane] = {}
        self.joined, self.pauses = False, 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._faust: _App | None = None
        self._measuring: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Join the group; returns when the app runs, which may be before partitions are assigned."""
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._faust = _app(self)
        await self._faust.start()
        self._measuring = asyncio.ensure_future(self._measure())
        WORK[self.group] = self.work

    async def stop(self) -> None:
        """Finish what runs (``grace`` seconds at most), commit, leave the group."""
        app = self._faust
        if app is None:
            return
        WORK.pop(self.group, None)
        if self._measuring is not None:  # None where start() failed: no Kafka answered
            self._measuring.cancel()
        app.flow_control.suspend()
        if app._consumer is not None:
            app._consumer.stop_flow()
        lanes = list(self.lanes)
        await self._drain(lanes)
        # After an outage of the broker Faust was seen to wait for ever here: no consumer thread answered any more.
        stopping = asyncio.ensure_future(_leave(app))
        await asyncio.wait({stopping}, timeout=STOP_SECONDS)
        if stopping.done():
            stopping.result()
        else:
            log.error("consumer did not stop", extra={"group": self.group})
        await self._release(lanes)
        self._faust = None

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
        return {(tp.topic, tp.partition) for tp in self.lanes}

    @property
    def ready(self) -> bool:
        """The group is joined, nobody rebalances, and what each partition needs is recovered. From any thread."""
        app = self._faust
        return app is not None and self.joined and not app.rebalancing and all(lane.ready for lane in list(self.lanes.values()))

    def told(self, stage: str) -> list[Value]:
        """Figures that every stage on this class has."""
        lanes = list(self.lanes.values())
        return [
            ("mailtide_stage_partitions", (stage,), len(lanes)),
            ("mailtide_fetch_paused", (stage,), sum(lane.full for lane in lanes)),
            ("mailtide_fetch_pauses_total", (stage,), self.pauses),
        ]

    def work(self) -> dict[str, Work]:
        """By partition, for ``streams.stall``."""
        found = {}
        for lane in [lane for lane in list(self.lanes.values()) if lane.ready and not lane.draining]:
            place = f"{lane.tp.topic}/{lane.tp.partition}"
            found[place] = Work(lane.figure, lane.behind or bool(lane.waiting or lane.open))
            due = min([lane.next, *(batch.first for batch in tuple(lane.open))])  # all below is done
            found[f"{place} commits"] = Work(lane.committed, lane.committed < due)
        return found

    async def _measure(self) -> None:
        """Ask the broker, not Faust, what is committed: Faust takes a commit for done that was refused (consumer.py:1080)."""
        while self._faust is not None:
            await asyncio.sleep(MEASURE)
            consumer: Any = self._faust.consumer
            for tp, lane in list(self.lanes.items()):
                place = TopicPartition(*tp)
                try:
                    async with asyncio.timeout(MEASURE):
                        end = (await consumer.highwaters(place))[place]
                        position = await consumer.position(place)
                        lane.committed = await consumer._thread.call_thread(consumer._thread._ensure_consumer().committed, place) or 0
                except TimeoutError:
                    continue  # the consumer's thread may be what is stuck: the last answer stands
                except Exception:
                    lane.behind = False  # in the middle of a rebalance, or no broker: nothing to blame this worker for
                    continue
                lane.behind = end > (position or 0)

    async def end_offsets(self, pairs: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The offset after the last record, asked from the broker."""
        if self._faust is None:
            return {}
        found = await self._faust.consumer.highwaters(*(TopicPartition(*pair) for pair in pairs))
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    async def idle_position(self, topic: str, partition: int) -> int | None:
        """Where the next fetch starts; None while anything of the partition is on its way or being handled."""
        lane = self.lanes.get(TP(topic, partition))
        if self._faust is None or lane is None or lane.draining or self._faust.rebalancing:
            return None
        consumer: Any = self._faust.consumer
        if lane.waiting or lane.open or consumer.given[lane.tp] or consumer.doubt or consumer.seeking:
            return None
        try:
            position: int | None = await asyncio.wait_for(consumer.position(TopicPartition(*lane.tp)), 5.0)
        except (TimeoutError, KafkaError):
            return None
        lost = consumer.doubt or consumer.seeking  # what was dropped is read again: nothing before the position is known to be done
        return None if lost or lane.waiting or lane.open or consumer.given[lane.tp] else position

    # -- between Faust and the lanes ------------------------------------------------------------

    def finish(self, batch: Batch) -> None:
        """Called by ``Batch.done``: make the offsets committable and fetch on."""
        lane = self.lanes.get(TP(batch.topic, batch.partition))
        if lane is not None:
            lane.close(batch)
        if self._faust is not None and batch.message is not None:
            consumer = self._faust.consumer
            consumer._acked[batch.message.tp]  # a defaultdict: the commit loop looks only at partitions it has heard of
            consumer.ack(batch.message)

    def _assign(self, tps: Iterable[TP]) -> None:
        for tp in tps:
            if tp not in self.lanes:
                self.lanes[tp] = _Lane(self, tp)

    async def _drain(self, tps: Iterable[TP]) -> None:
        await asyncio.gather(*(self.lanes[tp].drain(self.grace) for tp in tps if tp in self.lanes))

    async def _release(self, tps: Iterable[TP]) -> None:
        for tp in tps:
            lane = self.lanes.pop(tp, None)
            if lane is not None and self.on_revoked is not None:
                await self.on_revoked(tp.topic, tp.partition)
            if lane is not None:
                log.info("partition given up", extra=lane.place)

    def _put(self, batch: Batch) -> None:
        lane = self.lanes.get(TP(batch.topic, batch.partition))
        if lane is None or lane.draining:
            self._forget(batch)
        else:
            batch._app = self
            lane.put(batch)

    def _forget(self, batch: Batch) -> None:
        """Not ours any more: it must not hold up a rebalance, and without ``done`` it is not committed."""
        if self._faust is not None and batch.message is not None:
            self._faust.consumer._unacked_messages.discard(batch.message)
            batch.message.acked = True

    def _full(self, tp: TP, full: bool) -> None:
        self.pauses += full
        if self._faust is not None and self._faust._consumer is not None:
            (self._faust.consumer.on_buffer_full if full else self._faust.consumer.on_buffer_drop)(tp)


class _Lane:
    """One partition's batches: first the assignment hook, then one batch after the other."""

    def __init__(self, app: BatchApp, tp: TP) -> None:
        self.app, self.tp = app, tp
        self.waiting: deque[Batch] = deque()
        self.open: set[Batch] = set()  # handed to the handler and not done
        self.wake, self.idle = asyncio.Event(), asyncio.Event()
        self.idle.set()
        self.draining = self.full = self.ready = self.behind = False
        self.figure = self.committed = self.next = 0  # what was done; the broker's word; the offset after the last batch done
        self.place = {"group": app.group, "topic": tp.topic, "partition": tp.partition}
        self.task = asyncio.ensure_future(self._run())

    def put(self, batch: Batch) -> None:
        self.waiting.append(batch)
        self.wake.set()
        self._pressure()

    def close(self, batch: Batch) -> None:
        self.open.discard(batch)
        self.figure += 1
        self.next = max(self.next, batch.last + 1)
        if not self.open:
            self.idle.set()
        self._pressure()

    def drop(self) -> None:
        """Forget what has not begun; it is going to be read again."""
        while self.waiting:
            self.app._forget(self.waiting.popleft())
        self._pressure()

    async def drain(self, grace: float) -> None:
        """Begin nothing more and wait for what runs; what outlasts ``grace`` is given up."""
        self.draining = True
        self.drop()
        idle = asyncio.ensure_future(self.idle.wait())
        watched: list[asyncio.Future[Any]] = [idle, self.app.failed]
        await asyncio.wait(watched, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        self.task.cancel()
        await asyncio.wait({self.task})
        for batch in self.open:
            self.app._forget(batch)

    def _pressure(self) -> None:
        full = len(self.waiting) + len(self.open) >= self.app.buffer
        if full != self.full and not self.draining:
            self.full = full
            self.app._full(self.tp, full)

    async def _run(self) -> None:
        try:
            if self.app.on_assigned is not None:
                await self.app.on_assigned(self.tp.topic, self.tp.partition)
            self.ready = True
            log.info("partition open", extra=self.place)
            while True:
                while not self.waiting:
                    self.wake.clear()
                    await self.wake.wait()
                batch = self.waiting.popleft()
                self.open.add(batch)
                self.idle.clear()
                await self.app.handle(batch)
        except Exception as error:
            self.app.fail(error)


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> AIOKafkaConsumer:
        """Faust's own has a fixed fetch wait, one assignor and credentials of another shape.

        Range keeps partition p of all topics on one worker; Faust's round robin does not.
        """
        conf, app = self.app.conf, self.app.batches
        return AIOKafkaConsumer(
            **connection(app.kafka),
            client_id=conf.broker_client_id,
            group_id=conf.id,
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=None,
            max_partition_fetch_bytes=app.fetch_bytes,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            check_crcs=False,
            session_timeout_ms=int(app.kafka.session_timeout * 1000),
            heartbeat_interval_ms=int(min(3.0, app.kafka.session_timeout / 4) * 1000),
            max_poll_interval_ms=max(300_000, int(app.grace * 4000)),
            rebalance_timeout_ms=int((app.grace * 2 + 10) * 1000),
        )


class _Consumer(driver.Consumer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.given: defaultdict[TP, deque[Batch]] = defaultdict(deque)
        self.doubt = self.seeking = False
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """One message a (partition, fetch): value = the ``Batch``, offset = its last record's."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        if self.doubt or any(self._lost(batch) for given in self.given.values() for batch in given):
            # A batch that reached nobody would hold up its partition's commits for ever: read again
            # from the last commit. What was applied meanwhile is recognised by its offset.
            await self.perform_seek()
        active = self._get_active_partitions()
        if not active:
            await self.sleep(POLL / 10)
            return
        generation = self.app.consumer_generation_id
        found = await self._getmany(active_partitions=set(active), timeout=POLL)
        for pair, records in found.items():
            tp = TP(pair.topic, pair.partition)
            if self.should_stop or not self.flow_active or generation != self.app.consumer_generation_id:
                self.doubt = True
                return
            batch = self._batch(tp, records, generation)
            self.given[tp].append(batch)
            yield tp, batch.message
            message = batch.message
            if message is not None and message.refcount == 0 and not message.acked:
                self.doubt = True

    def _batch(self, tp: TP, records: list[Any], generation: int) -> Batch:
        batch = Batch(tp.topic, tp.partition, records, self.highwater(TopicPartition(*tp)) or 0)
        last = records[-1]
        batch.message = ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            (),
            None,
            batch,
            None,
            0,
            0,
            tp,
            generation_id=generation,
        )
        return batch

    @staticmethod
    def _lost(batch: Batch) -> bool:
        return batch.message is not None and batch.message.acked and not batch.finished

    def _new_offset(self, tp: TP) -> int | None:
        """Past the last batch before which all are done; ``ack`` alone commits nothing."""
        given, offset = self.given[tp], None
        while given and given[0].finished:
            offset = given.popleft().last + 1
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return offset

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Between two batches' last offsets there are always gaps; they mean nothing here."""

    async def perform_seek(self) -> None:
        self.seeking, self.doubt = True, False
        self.given.clear()
        for lane in self.app.batches.lanes.values():
            lane.drop()
        try:
            await super().perform_seek()
            # seek_to_committed leaves alone what has no commit yet, which would skip what was lost.
            fresh = [tp for tp in self.assignment() if self._committed_offset[tp] is None]
            if fresh:
                await self._thread.seek_to_beginning(*(TopicPartition(*tp) for tp in fresh))
                for tp in fresh:
                    self._read_offset[tp] = None
        finally:
            self.seeking = False

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        app = self.app.batches
        await app._drain(revoked)
        await self.commit()
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self.given.pop(tp, None)
        await app._release(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self.app.batches._assign(assigned)
        await super().on_partitions_assigned(assigned, generation_id)
        self.app.batches.joined = True

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's watchdog counts messages, not batches; lag and stalls are our monitor's business."""


class _Producer(driver.Producer):
    def _settings_auth(self) -> dict[str, Any]:
        options = connection(self.app.batches.kafka)
        options.pop("bootstrap_servers")
        return options


class _Transport(driver.Transport):
    Consumer = _Consumer
    Producer = _Producer


class _Bytes(faust.Schema):
    """Hands the batch through as it is."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        return message.value


class _App(faust.App):
    batches: BatchApp

    def _create_directories(self) -> None:
        """Nothing of Faust's lies on disk."""


async def _leave(app: _App) -> None:
    if app._consumer is not None:
        await app.consumer.commit()
    await app.stop()


def _app(batches: BatchApp) -> _App:
    kafka = batches.kafka
    brokers = [f"kafka://{server}" for server in kafka.bootstrap.split(",")]
    app = _App(
        batches.group,
        broker=brokers,
        datadir=tempfile.gettempdir(),
        loop=asyncio.get_running_loop(),
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        stream_buffer_maxsize=64,
        # Lanes are drained by us, with an end. Faust's own wait has none, not even cancellation ends it, and it collects
        # garbage at each acknowledgement: a batch that reached nobody would keep it, and a core, busy for ever.
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        broker_commit_interval=COMMIT_INTERVAL,
        broker_session_timeout=kafka.session_timeout,
        broker_request_timeout=max(60.0, kafka.session_timeout * 2),
        broker_rebalance_timeout=batches.grace * 2 + 10,
    )
    app.batches = batches
    app.transport = app.producer_transport = _Transport(app.conf.broker_consumer, app)
    channel = app.topic(*batches.topics, schema=_Bytes(key_type=bytes, value_type=bytes))

    @app.agent(channel, name=f"{batches.group}-batches")
    async def pour(stream: Any) -> None:
        async for event in stream.noack().events():
            batches._put(event.value)

    return app
