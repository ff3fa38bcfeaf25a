"""The sender: a draft passes the gate, is claimed, goes to the mail server, and ends in one record.

For each partition, in this order, which is what makes "never twice" hold:

1. fence: the partition's transactional producer is initialised, so that an older owner can claim nothing any more;
2. recover: the ledger from ``email.deliveries``, ``email.claims`` and ``email.gate``; a claim without an outcome ends ``unknown``;
3. for each draft: gate; wait until intake has read all that was published; gate again; claim, acknowledged; DATA; outcome; commit.

A draft's offset is committed after its outcome is acknowledged. DATA follows its
claim by less than half a session timeout, and an outcome is written only by a
worker that Kafka has confirmed as the owner as lately, through the producer that
the next owner fences: a worker that was asleep finds its claims too old and the
partition gone, and what it was about to write never shows.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError

from models.mail.message import check_shop, signer
from schemas.config import Settings
from schemas.errors import UNREADABLE, KafkaUnavailable, SettingsError
from schemas.mail import Draft, decoder, iso
from schemas.topics import DRAFTS, EVENTS, GATE
from streams.metrics import STAGES, Value
from streams.progress import WORK, Work
from streams.sender.dispatch import Dispatch
from streams.sender.draft_queue import ASKED, DraftQueue, queue_metrics
from streams.sender.group_commit import GroupCommit
from streams.sender.ledger import orphan, recover
from streams.sender.mail_renderer import MailRenderer
from streams.sender.smtp import Mailer
from streams.tasks import finish, wait
from transport.availability import Outage, watch
from transport.clients import connection, producer
from transport.end_offsets import EndOffsets

log = structlog.get_logger()
GROUP = "mailtide-sender"
ROUND = 16  # drafts of a queue that are made mails together
MOST_WAITING = 20_000  # drafts of a partition in memory, some 40 MB; beyond, its drafts are read later
COMMIT_EVERY = 0.5  # seconds
_DRAFT = decoder(Draft)


async def serve(settings: Settings, stop: asyncio.Event, worker_id: str = "w0") -> None:
    """Send until ``stop`` is set; mails on their way are finished first.

    Raises SettingsError where a lawful mail can't be made of the settings,
    KafkaUnavailable without a broker, KafkaError when Kafka fails later on.
    """
    check_shop(settings.shop)
    if not settings.smtp.url:
        raise SettingsError("smtp.url is empty: name a mail server in MAILTIDE_SMTP, or run `mailtide up`, which brings one")
    sender = Sender(settings, worker_id)
    try:
        await sender.start()
        WORK["sender"] = sender.work
        with STAGES.watch("sender", lambda: sender.joined and sender.tasks.keys() == sender.queues.keys(), sender.metrics):
            await sender.run(stop)
    finally:
        WORK.pop("sender", None)
        await sender.close()


class Sender(ConsumerRebalanceListener):
    """All partitions of one worker."""

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self.settings, self.kafka = settings, settings.kafka
        self.lease = settings.kafka.session_timeout / 2
        self.log = log.bind(group=self.kafka.prefix + GROUP, worker=worker_id)
        self.renderer = MailRenderer(settings, signer(settings.smtp))
        self.mailer = Mailer(settings.smtp)
        self.queues: dict[int, DraftQueue] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.outcomes = Counter({(trigger.name, *end): 0 for trigger in settings.trigger for end in ASKED})
        self.joined, self.beats = False, 0
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.consumer = AIOKafkaConsumer(
            **connection(self.kafka),
            group_id=self.kafka.prefix + GROUP,
            client_id=f"mailtide-sender-{worker_id}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            session_timeout_ms=int(self.kafka.session_timeout * 1000),
            heartbeat_interval_ms=int(self.kafka.session_timeout * 150),
            rebalance_timeout_ms=int(self.kafka.session_timeout * 3000),
            # By ranges a partition of both topics falls to one member. No second strategy: aiokafka joins once for each, and never settles.
            partition_assignment_strategy=[RangePartitionAssignor],
        )
        self.end_offsets = EndOffsets(self.consumer, self.kafka.topic(EVENTS))
        self._dispatch: Dispatch | None = None
        self._measuring: asyncio.Task[None] | None = None

    def work(self) -> dict[str, Work]:
        """For ``streams.progress``: a queue with nothing to do turns once a second, too."""
        return {"": Work(self.beats, True)} | {str(queue.number): Work(queue.beats, queue.alive) for queue in list(self.queues.values())}

    async def start(self) -> None:
        """Connect and join the group."""
        self._measuring = asyncio.create_task(watch(self.consumer, Outage(self.kafka, self.kafka.prefix + GROUP)))
        await self.renderer.start()
        examples = await producer(self.kafka, linger_ms=50)
        self._dispatch = Dispatch(
            self.settings, self.queues, self.renderer, self.mailer, self.end_offsets, examples, self.lease, self._ours, self._fail
        )
        self.consumer.subscribe([self.kafka.topic(DRAFTS), self.kafka.topic(GATE)], listener=self)
        try:
            await self.consumer.start()
        except KafkaError as error:
            raise KafkaUnavailable(f"no Kafka answers at {self.kafka.bootstrap}: {error}") from error

    def metrics(self) -> list[Value]:
        """Figures for ``/metrics``."""
        return queue_metrics(self.queues, self.outcomes, MOST_WAITING)

    @property
    def dispatch(self) -> Dispatch:
        """What sends; KafkaUnavailable before ``start``."""
        if self._dispatch is None:
            raise KafkaUnavailable("the sender isn't started")
        return self._dispatch

    async def close(self) -> None:
        """Finish what is on its way, commit, leave the group."""
        if self._measuring is not None:
            self._measuring.cancel()
        await self._leave(list(self.queues))
        await self.consumer.stop()
        if self._dispatch is not None:
            await self._dispatch.producer.stop()
        await self.mailer.close()
        await self.renderer.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Read until told to stop; a partition's failure ends the worker."""
        committed = time.monotonic()
        while not stop.is_set():
            self.beats += 1
            if self.failure.done():
                self.failure.result()
            for place, records in (await self.consumer.getmany(timeout_ms=50, max_records=2000)).items():
                queue = self.queues.get(place.partition)
                if queue is not None:
                    self._read(queue, place, records)
            if time.monotonic() - committed >= COMMIT_EVERY:
                await self.commit()
                committed = time.monotonic()

    def _read(self, queue: DraftQueue, place: TopicPartition, records: Iterable[Any]) -> None:
        if place.topic == self.kafka.topic(GATE):
            for record in records:
                queue.ledger.gate(record.value)
            queue.wake.set()
            return
        for record in records:
            try:
                draft = _DRAFT.decode(record.value or b"")
            except UNREADABLE as error:
                where = {"topic": place.topic, "partition": place.partition, "offset": record.offset}
                self.log.error("a draft that can't be read", error=str(error), **where)
                draft = None
            queue.add(record.offset, draft)
        if len(queue) >= MOST_WAITING:
            self.consumer.pause(place)

    # Partitions come and go.

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Open a queue for each partition; its records are read once its memory is recovered."""
        places = list(assigned)
        drafts = {place.partition for place in places if place.topic == self.kafka.topic(DRAFTS)}
        self.consumer.pause(*places)
        if drafts != {place.partition for place in places if place.topic == self.kafka.topic(GATE)}:
            known = [self.consumer.partitions_for_topic(self.kafka.topic(name)) for name in (DRAFTS, GATE)]
            if known[0] != known[1]:
                self._fail(KafkaUnavailable(f"{DRAFTS} and {GATE} have different partitions; run `mailtide topics check`"))
                return
            # The member that shares them out hasn't heard of a new topic yet, and will do it again.
            self.log.warning("drafts and gate lie apart: nothing is read until the group has shared them out anew")
            return
        self.joined = True
        for number in sorted(drafts):
            self.tasks[number] = asyncio.create_task(self._partition(number))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish what is on its way before another worker takes over."""
        self.joined = False
        await self._leave({place.partition for place in revoked})

    async def _leave(self, numbers: Iterable[int]) -> None:
        leaving = sorted(set(numbers))
        queues = [self.queues[number] for number in leaving if number in self.queues]
        for queue in queues:
            queue.alive = False
            queue.wake.set()
        for number in leaving:
            if (task := self.tasks.pop(number, None)) is not None:
                if number not in self.queues:
                    task.cancel()  # still recovering: nothing is on its way
                await finish(task, self.lease)
        for queue in queues:
            for task in list(queue.sending):
                await finish(task, self.lease)  # cancelled after DATA it is ``unknown``, and written as such
        await self.commit()
        for queue in queues:
            self.queues.pop(queue.number, None)
            await queue.group_commit.producer.stop()

    async def _partition(self, number: int) -> None:
        try:
            queue = await self._open(number)
            while queue.alive:
                queue.beats += 1
                queue.wake.clear()
                if jobs := queue.take(ROUND, time.time()):
                    await self.dispatch.round(queue, jobs)
                elif queue.alive:
                    await wait(queue.wake, queue.pause(time.time()))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)

    async def _open(self, number: int) -> DraftQueue:
        claimer = await producer(
            self.kafka,
            transactional_id=f"{self.kafka.prefix}sender-{number}",
            transaction_timeout_ms=int(self.kafka.session_timeout * 1000),
        )
        started = time.monotonic()
        try:
            ledger, gate = await recover(self.kafka, number, self.settings.clock)
        except BaseException:
            await claimer.stop()
            raise
        queue = self.queues[number] = DraftQueue(number, ledger, GroupCommit(claimer, number), counts=self.outcomes)
        queue.checked = started
        orphans = list(ledger.claims.values())
        ends = (orphan(claim, iso(self.dispatch.now(claim.draft)), self.settings.shop) for claim in orphans)
        await asyncio.gather(*(self.dispatch.record(queue, end, None) for end in ends))
        drafts, gates = (TopicPartition(self.kafka.topic(name), number) for name in (DRAFTS, GATE))
        self.consumer.seek(gates, gate)
        self.consumer.resume(drafts, gates)
        self.log.info("partition open", topic=drafts.topic, partition=number, ended=len(ledger.ended), unknown=len(orphans))
        return queue

    async def _ours(self, queue: DraftQueue) -> bool:
        while time.monotonic() - queue.checked > self.lease:
            await self.commit()
            if queue.number not in self.queues or self.failure.done():
                return False
            await asyncio.sleep(0.05)
        return True

    async def commit(self) -> None:
        """Commit what has ended; that Kafka takes it says that the partitions are ours."""
        assigned, asked = self.consumer.assignment(), time.monotonic()
        drafts, gate = self.kafka.topic(DRAFTS), self.kafka.topic(GATE)
        offsets: dict[TopicPartition, int] = {}
        queues = [queue for queue in self.queues.values() if TopicPartition(drafts, queue.number) in assigned]
        for queue in queues:
            place = TopicPartition(gate, queue.number)
            offsets[place] = await self.consumer.position(place)
            if queue.committable() >= 0:
                offsets[TopicPartition(drafts, queue.number)] = queue.committable()
            if len(queue) < MOST_WAITING // 2 and TopicPartition(drafts, queue.number) in self.consumer.paused():
                self.consumer.resume(TopicPartition(drafts, queue.number))
        if not offsets:
            return
        try:
            await self.consumer.commit(offsets)
        except KafkaError as error:
            self.log.warning("commit refused", error=type(error).__name__)
            return
        for queue in queues:
            queue.checked = asked
