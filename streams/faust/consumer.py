"""Faust with a whole fetch as one message: what of Faust is made anew for ``streams.faust.app``.

The ordinary way costs Faust some 200 us an event, most of it in one message,
one event object and one acknowledgement for each record. Here its consumer
yields one message for each (partition, fetch), so that cost is paid once for
thousands of records; Faust keeps membership, assignment, fetching and commits.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Protocol

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.threads import WorkerThread

from schemas.config import KafkaSettings
from streams.faust.batch import Batch
from streams.faust.partition_queue import PartitionQueue
from transport.clients import connection

POLL = 0.1  # seconds a fetch waits before it looks again which partitions want more
FETCH_WAIT_MS = 50  # Faust hard-codes 1500, which made the whole 2.5 times slower
COMMIT_INTERVAL = 0.5  # seconds


class UnpackedRecords:
    """``PartitionRecords`` that gives aiokafka's own record objects (key, value, offset, timestamp, headers), all at once.

    For who always takes a whole fetch: ``next_fetch_offset`` is past it as soon as it is looked at. What an aborted
    transaction wrote is left out where ``PartitionRecords`` would leave it out, a batch at a time.
    """

    def __init__(self, found: PartitionRecords) -> None:
        self.next_fetch_offset = found.next_fetch_offset
        self._found = found

    def __iter__(self) -> Iterator[Any]:
        records: list[Any] = []
        asked, batches = self.next_fetch_offset, self._found._records
        while batches.has_next():
            batch = batches.next_batch()
            if not self._void(batch):
                records += batch
            self.next_fetch_offset = batch.next_offset
        if records and records[0].offset < asked:  # a batch is stored whole: it may begin before what was asked for
            records = [record for record in records if record.offset >= asked]
        return iter(records)

    def _void(self, batch: Any) -> bool:
        """A transaction's marker, or of a transaction that the broker says was aborted (it says so only to who reads committed)."""
        found = self._found
        if batch.producer_id is not None:  # a batch of format 2
            found._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and found._contains_abort_marker(batch):
                found._aborted_producers.discard(batch.producer_id)
        return batch.is_control_batch or (batch.is_transactional and batch.producer_id in found._aborted_producers)


class DaemonWorkerThread(WorkerThread):
    """Mode's threads outlive the program that forgets one: a worker that had said its error stayed, and nobody started it again."""

    def __init__(self, service: Any, **options: Any) -> None:
        super().__init__(service, **options)
        self.daemon = True


class Thread(driver.AIOKafkaConsumerThread):
    Worker = DaemonWorkerThread

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        """Nothing more: ``BatchApp.wait`` says it in one line, where mode would print a traceback."""

    async def on_thread_stop(self) -> None:
        """Where no broker answers aiokafka lets the cancellation of its own fetch out (fetcher.py:457).

        Uncaught it ended this thread before that was told: a traceback on stderr, and who left waited for ever.
        """
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            if self._consumer is not None:
                await self._consumer._client.close()  # what stop() had left to do

    async def _fetch_records(
        self, consumer: AIOKafkaConsumer, active_partitions: set[TP], timeout: float | None = None, max_records: int | None = None
    ) -> Any:
        """What has arrived is handed out as it was unpacked: aiokafka makes a ``ConsumerRecord`` of each, a tenth of intake's time."""
        if max_records is None:
            for result in consumer._fetcher._records.values():
                if isinstance(result, FetchResult) and isinstance(result._partition_records, PartitionRecords):
                    result._partition_records = UnpackedRecords(result._partition_records)
        return await super()._fetch_records(consumer, active_partitions, timeout, max_records)

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
            isolation_level="read_committed",  # the shop's producers may be transactional: Kafka Streams, Flink
            max_poll_records=None,
            max_partition_fetch_bytes=app.fetch_bytes,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            check_crcs=False,
            session_timeout_ms=int(app.kafka.session_timeout * 1000),
            heartbeat_interval_ms=int(min(3.0, app.kafka.session_timeout / 4) * 1000),
            max_poll_interval_ms=max(300_000, int(app.grace * 4000)),
            rebalance_timeout_ms=int((app.grace * 2 + 10) * 1000),
        )


class Consumer(driver.Consumer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.given: defaultdict[TP, deque[Batch]] = defaultdict(deque)
        self.passed: dict[TP, int] = {}  # offsets without a batch behind which all is done: transaction markers
        self.doubt = self.seeking = False
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> Thread:
        return Thread(self, loop=self.loop, beacon=self.beacon)

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
        """Past the last batch before which all are done, or past the markers before the next; ``ack`` alone commits nothing."""
        given, offset = self.given[tp], self.passed.pop(tp, None)
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
        for queue in self.app.batches.queues.values():
            queue.drop()
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
        await app.drain(revoked)
        await self.commit()
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self.given.pop(tp, None)
            self.passed.pop(tp, None)
        await app.release(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self.app.batches.assign(assigned)
        await super().on_partitions_assigned(assigned, generation_id)
        self.app.batches.joined = True

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's watchdog counts messages, not batches; lag and stalls are our monitor's business."""


class Producer(driver.Producer):
    def _settings_auth(self) -> dict[str, Any]:
        options = connection(self.app.batches.kafka)
        options.pop("bootstrap_servers")
        return options


class Transport(driver.Transport):
    Consumer = Consumer
    Producer = Producer


class Bytes(faust.Schema):
    """Hands the batch through as it is."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        return message.value


class BatchHost(Protocol):
    """What Faust's parts need of the app whose batches they fetch."""

    group: str
    kafka: KafkaSettings
    topics: tuple[str, ...]
    grace: float  # seconds
    fetch_bytes: int
    queues: dict[TP, PartitionQueue]
    joined: bool

    def assign(self, tps: Iterable[TP]) -> None:
        """These partitions are ours from now on."""

    async def drain(self, tps: Iterable[TP]) -> None:
        """Wait for what runs of them; begin nothing more."""

    async def release(self, tps: Iterable[TP]) -> None:
        """They are another member's from now on."""

    def put(self, batch: Batch) -> None:
        """A batch that was fetched."""


class App(faust.App):
    batches: BatchHost

    def _create_directories(self) -> None:
        """Nothing of Faust's lies on disk."""


async def leave(app: App) -> None:
    """A last commit, then an end: also where the broker refuses the one, as it does while it starts."""
    try:
        if app._consumer is not None:
            await app.consumer.commit()
    finally:
        await app.stop()


def app_of(batches: BatchHost) -> App:
    kafka = batches.kafka
    brokers = [f"kafka://{server}" for server in kafka.bootstrap.split(",")]
    app = App(
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
        # Queues are drained by us, with an end. Faust's own wait has none, not even cancellation ends it, and it collects
        # garbage at each acknowledgement: a batch that reached nobody would keep it, and a core, busy for ever.
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        broker_commit_interval=COMMIT_INTERVAL,
        broker_session_timeout=kafka.session_timeout,
        broker_request_timeout=max(60.0, kafka.session_timeout * 2),
        broker_rebalance_timeout=batches.grace * 2 + 10,
    )
    app.batches = batches
    app.transport = app.producer_transport = Transport(app.conf.broker_consumer, app)
    channel = app.topic(*batches.topics, schema=Bytes(key_type=bytes, value_type=bytes))

    @app.agent(channel, name=f"{batches.group}-batches")
    async def pour(stream: Any) -> None:
        async for event in stream.noack().events():
            batches.put(event.value)

    return app
