"""What is learned from everybody: clusters, the rhythm of visits, goods that go together.

One consumer of ``model.vectors`` (one partition) learns and publishes to
``model.clusters``, ``model.rhythm`` and ``model.items``, which every intake
follows. Order of a flush: publications acknowledged -> the learners' state and
the next offset in one file -> the records' offsets committed. After a crash the
file says where to go on, so nothing is learned twice; what had been published
past it is published again under a later epoch. Intake may write a record again
after a crash of its own, to the byte: those of late are known by their digests.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition

from models.learning.clusters import ClusterLearner, snapshot_id
from models.learning.items import ItemsLearner
from models.learning.rhythm import RhythmLearner
from schemas.config import Settings
from schemas.errors import UNREADABLE, StoreError
from schemas.learning import Basket, Forgotten, ItemsSnapshot, Learning, RhythmWeights, Vector, Visit
from schemas.mail import seconds
from schemas.release import Snapshot
from schemas.topics import CLUSTERS, ITEMS, RHYTHM, VECTORS
from streams.faust.app import Batch, BatchApp
from streams.metrics import STAGES
from transport.clients import producer, reader
from transport.follow import follow

GROUP = "mailtide-clusters"
CHUNK = 200  # records between two looks at the event loop
LOOK = 0.1  # seconds between two looks whether a flush is due
FLUSH = 1.0  # seconds between two flushes at least
OPEN = 12  # batches that make a flush due at once
BUFFER = 16
IDLE = 1.0  # seconds without records after which even a little news is published

KNOWN = 16_384  # digests of the newest records: more than intake repeats after a crash (its flushes in flight, of all partitions)
DIGEST = 8  # bytes

KEYS = {RHYTHM: "weights", ITEMS: "items"}
KEPT = 100  # snapshots of the clusters that stay readable

log = logging.getLogger(__name__)


class Saved(msgspec.Struct):
    """The file: ``offset`` is the next one to learn, ``epochs`` the last published of each topic, ``published`` how much it had learned."""

    offset: int
    at: float
    epochs: dict[str, int]
    published: dict[str, int]
    clusters: bytes
    rhythm: bytes
    items: bytes
    format: int = 1
    known: bytes = b""  # digests of the newest records, oldest first


class Learners:
    """The three learners and their place in the topic."""

    def __init__(self) -> None:
        self.offset = 0
        self.at = 0.0  # newest event time seen, seconds
        self.epochs: dict[str, int] = {}
        self.published: dict[str, int] = {}  # by topic: how much had been learned
        self.clusters, self.rhythm, self.items = ClusterLearner(), RhythmLearner(), ItemsLearner()
        self.known: dict[bytes, None] = {}  # oldest first

    def learn(self, record: Any) -> None:
        """One Kafka record of ``model.vectors``; one that can't be read is named in the log and left out."""
        self.offset = record.offset + 1
        if self._repeated(record.value or b""):
            return
        try:
            found = DECODER.decode(record.value or b"")
        except UNREADABLE as error:
            log.warning("no learning record, left out: %s", error, extra={"topic": VECTORS, "partition": 0, "offset": record.offset})
            return
        self.at = max(self.at, seconds(found.at))
        if isinstance(found, Vector):
            self.clusters.learn(found.customer, found.values)
        elif isinstance(found, Visit):
            self.rhythm.learn(found.features, found.labels)
        elif isinstance(found, Forgotten):
            self.clusters.forget(found.customer)
        else:
            self._basket(found)

    def _repeated(self, value: bytes) -> bool:
        digest = hashlib.blake2b(value, digest_size=DIGEST).digest()
        if digest in self.known:
            return True
        self.known[digest] = None
        if len(self.known) > KNOWN:
            del self.known[next(iter(self.known))]
        return False

    def _basket(self, found: Basket) -> None:
        self.items.learn(found.new, found.owned, found.products, seconds(found.at), found.first_seen)

    def made(self, topic: str, epoch: int) -> Snapshot | RhythmWeights | ItemsSnapshot | None:
        """What is to be published there, None where too little is known."""
        if topic == CLUSTERS:
            return self.clusters.snapshot(epoch, self.at)
        return self.rhythm.weights(epoch) if topic == RHYTHM else self.items.snapshot(epoch)

    def news(self) -> list[tuple[str, int, int]]:
        """(topic, how much was learned, how much more makes a publication worth while)."""
        return [(CLUSTERS, self.clusters.state.learned, 50), (RHYTHM, self.rhythm.seen, 200), (ITEMS, self.items.state.baskets, 200)]

    def dump(self) -> bytes:
        """Everything as MessagePack."""
        parts = (self.clusters.to_bytes(), self.rhythm.to_bytes(), self.items.to_bytes())
        return msgspec.msgpack.encode(Saved(self.offset, self.at, self.epochs, self.published, *parts, known=b"".join(self.known)))

    @classmethod
    def load(cls, data: bytes) -> Learners:
        """What ``dump`` wrote; raises ``msgspec.DecodeError``."""
        saved, made = msgspec.msgpack.decode(data, type=Saved), cls()
        made.offset, made.at, made.epochs, made.published = saved.offset, saved.at, saved.epochs, saved.published
        made.clusters = ClusterLearner.from_bytes(saved.clusters)
        made.rhythm = RhythmLearner.from_bytes(saved.rhythm)
        made.items = ItemsLearner.from_bytes(saved.items)
        made.known = {saved.known[at : at + DIGEST]: None for at in range(0, len(saved.known), DIGEST)}
        return made


DECODER = msgspec.json.Decoder(Learning)


class Stage:
    """Reads, learns, publishes and keeps the file."""

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self.settings, self.worker_id = settings, worker_id
        self.path = Path(settings.home) / "learners" / "state.msgpack"
        self.learners: Learners | None = None
        self.open: list[Batch] = []  # learned, not yet in the file
        self.lock = asyncio.Lock()
        self.last_flush = self.last_record = 0.0
        self._stamp: tuple[int, int] | None = None
        self.producer: AIOKafkaProducer
        self.app: BatchApp

    # -- the partition comes and goes -----------------------------------------------------------

    async def assigned(self, topic: str, number: int) -> None:
        """Go on from the file; without one, from what was published and what the topic still holds."""
        newest = await _newest(self.settings)
        found = Learners()
        if self.path.exists():
            try:
                found = Learners.load(self.path.read_bytes())
            except UNREADABLE as error:
                raise StoreError(f"{self.path} can't be read ({error}): delete it, and the learners begin anew") from error
            end = (await self.app.end_offsets([(topic, number)]))[topic, number]
            if found.offset > end:
                raise StoreError(f"{self.path} is at offset {found.offset}, but {topic} ends at {end}: delete the file")
        elif CLUSTERS in newest:
            found.clusters = ClusterLearner.resumed(msgspec.json.decode(newest[CLUSTERS][1], type=Snapshot))
        for name, (epoch, _) in newest.items():
            found.epochs[name] = max(epoch, found.epochs.get(name, 0))
        async with self.lock:
            self.learners, self.open, self._stamp = found, [], self._stat()
        log.info("partition taken over", extra={"group": self.app.group, "topic": topic, "partition": number, "offset": found.offset})

    async def revoked(self, topic: str, number: int) -> None:
        """Forget: whoever owns the partition next reads the file."""
        async with self.lock:
            self.learners, self.open = None, []

    # -- records --------------------------------------------------------------------------------

    async def handle(self, batch: Batch) -> None:
        """Learn one batch; the next flush makes it done."""
        async with self.lock:
            if self.learners is None:
                return
            if not self.open and batch.first > self.learners.offset:
                await self._catch_up(batch.first)
            records = [record for record in batch.records if record.offset >= self.learners.offset]
            for start in range(0, len(records), CHUNK):
                for record in records[start : start + CHUNK]:
                    self.learners.learn(record)
                await asyncio.sleep(0)
            self.open.append(batch)
            self.last_record = time.monotonic()

    async def _catch_up(self, until: int) -> None:
        """Learn what was committed but isn't in the file: the file was lost, or stands on another machine."""
        assert self.learners is not None
        tp = TopicPartition(self.settings.kafka.topic(VECTORS), 0)
        client = await reader(self.settings.kafka)
        try:
            client.assign([tp])
            oldest = (await client.beginning_offsets([tp]))[tp]
            client.seek(tp, max(oldest, self.learners.offset))
            log.info("learning %s offsets %d to %d anew: %s ends before them", VECTORS, max(oldest, self.learners.offset), until, self.path)
            while await client.position(tp) < until:
                for records in (await client.getmany(timeout_ms=500, max_records=CHUNK)).values():
                    for record in records:
                        if record.offset < until:
                            self.learners.learn(record)
        finally:
            await client.stop()

    # -- flush ----------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Flush if it is time."""
        now = time.monotonic()
        if now - self.last_flush >= FLUSH or len(self.open) >= OPEN:
            async with self.lock:
                await self._flush(now, idle=now - self.last_record >= IDLE)

    async def _flush(self, now: float, idle: bool) -> None:
        found = self.learners
        if found is None or not (self.open or idle):
            return
        self.last_flush = now
        published = False
        for topic, count, enough in found.news():
            if count - found.published.get(topic, 0) >= (1 if idle else enough):
                published |= await self._publish(topic, found)
                found.published[topic] = count
        if self.open or published:
            await asyncio.to_thread(self._write, found.dump())
        batches, self.open = self.open, []
        for batch in batches:
            batch.done()

    async def _publish(self, topic: str, found: Learners) -> bool:
        """Send the newest state of one learner and wait for the acknowledgement; False where there is nothing to say yet."""
        epoch = found.epochs.get(topic, 0) + 1
        made = found.made(topic, epoch)
        if made is None:
            return False
        name = self.settings.kafka.topic(topic)
        key = made.snapshot_id if isinstance(made, Snapshot) else KEYS[topic]
        await self.producer.send_and_wait(name, msgspec.json.encode(made), key=key.encode(), partition=0)
        if isinstance(made, Snapshot) and epoch > KEPT:  # compaction would keep each of them for ever
            await self.producer.send_and_wait(name, None, key=snapshot_id(epoch - KEPT).encode(), partition=0)
        found.epochs[topic] = epoch
        return True

    def _write(self, data: bytes) -> None:
        """Whole or not at all; refuses to go on where another worker has written since."""
        if self._stat() != self._stamp:
            raise StoreError(f"{self.path} was written by another worker: only one may learn; stop this one")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        spare = self.path.with_suffix(f".{self.worker_id}.tmp")
        try:
            with spare.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            spare.replace(self.path)
        except OSError as error:
            raise StoreError(f"{self.path} can't be written ({error.strerror}): make room or change home") from error
        self._stamp = self._stat()

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino


async def _newest(settings: Settings) -> dict[str, tuple[int, bytes]]:
    """By topic: the newest published epoch and its record."""
    found: dict[str, tuple[int, bytes]] = {}

    def newer(topic: str, value: bytes) -> None:
        epoch = msgspec.json.decode(value, type=_Published).epoch
        found[topic] = max(found.get(topic, (0, b"")), (epoch, value))

    await follow(settings.kafka, (CLUSTERS, RHYTHM, ITEMS), newer, asyncio.Event(), once=True)
    return found


class _Published(msgspec.Struct):
    epoch: int


async def serve(settings: Settings, stop: asyncio.Event, worker_id: str = "w0") -> None:
    """Run the stage until ``stop``; raises what ended it before that."""
    stage = Stage(settings, worker_id)
    stage.producer = await producer(settings.kafka)
    stage.app = BatchApp(
        GROUP,
        settings.kafka,
        [settings.kafka.topic(VECTORS)],
        stage.handle,
        on_assigned=stage.assigned,
        on_revoked=stage.revoked,
        buffer=BUFFER,
    )
    ticking = asyncio.create_task(_tick(stage))
    try:
        await stage.app.start()
        with STAGES.watch("clusters", lambda: stage.app.ready, lambda: stage.app.metrics("clusters")):
            await stage.app.wait(stop)
    finally:
        # The ticking goes on meanwhile: leaving waits until what was learned is in the file.
        await stage.app.stop()
        ticking.cancel()
        await asyncio.wait({ticking})
        await stage.producer.stop()


async def _tick(stage: Stage) -> None:
    while True:
        await asyncio.sleep(LOOK)
        try:
            await stage.tick()
        except Exception as error:
            stage.app.fail(error)
            return
