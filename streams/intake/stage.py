"""From ``customer.events`` to decisions: the first stage, where every accepted event counts exactly once.

For each batch of a partition: route (dead letters, events of other partitions),
``models.triggers.passes.Pass`` over the customers' states, timers that came due, then a
flush in the order that ``streams.intake.partition`` keeps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from aiokafka.errors import KafkaError

from models.triggers.passes import Pass, applied_offset, next_timer
from schemas.config import Settings
from schemas.errors import UNREADABLE, ForeignState, KafkaUnavailable, LostState, StoreError, TopicMismatch
from schemas.events import Event
from schemas.mail import Gone, encode
from schemas.topics import CLUSTERS, CUSTOMERS, DEAD_LETTERS, EVENTS, FEEDBACK, GATE, INTENTS, ITEMS, RHYTHM, TONES, TOPICS, VECTORS
from streams.faust.app import Batch, BatchApp
from streams.intake.partition import Partition
from streams.intake.route import Topology, route
from streams.intake.store import Clock, Store, recover
from streams.metrics import STAGES, Value, labelled
from streams.profiles import Profiles
from transport.batches import ProducerBatches
from transport.clients import producer
from transport.follow import follow
from transport.oversized import open_producer

GROUP = "mailtide-intake"
FETCH_BYTES = 4 << 20  # of a partition: a flush costs several round trips, however little is in it
BUFFER = 3  # fetches of a partition waiting or in flight
CHUNK = 500  # records or timers between two looks at the event loop: heartbeats and flushes go on meanwhile
TICK = 1.0  # seconds between two looks at the wall clock's timers
SLICE = 900.0  # seconds of event time applied at once: a timer that they set may fire so much too late, in a replay only
LOG_APPEND_TIME = 1  # aiokafka's ``timestamp_type``
TOO_OFTEN = 10_000  # firings of one customer in one go: a timer that never advances

BESIDE = (CUSTOMERS, INTENTS, GATE, FEEDBACK)  # partition p of the events writes to partition p of these

log = logging.getLogger(__name__)


class Passing(Protocol):
    """``models.triggers.passes.Pass``, or a double of it."""

    def run(self, states: dict[str, bytes], events: Any, now: float, wall: float, partition: int) -> Any:
        """Apply events in offset order."""

    def fire(self, states: dict[str, bytes], now: float, wall: float, partition: int) -> Any:
        """Fire timers that are due."""

    def update(self, topic: str, value: bytes) -> None:
        """A newer published model."""


class Intake:
    """The stage's collaborators and its partitions."""

    def __init__(
        self, settings: Settings, worker_id: str, passing: Passing, next_timer: Callable[[bytes], float], applied: Callable[[bytes], int]
    ) -> None:
        self.settings, self.passing, self.next_timer, self.applied = settings, passing, next_timer, applied
        self.home = Path(settings.home) / "state" / f"intake-{worker_id}"
        self.topic = {name: settings.kafka.topic(name) for name in (EVENTS, DEAD_LETTERS, INTENTS, GATE, VECTORS, FEEDBACK, CUSTOMERS)}
        self.parts: dict[int, Partition] = {}
        self.counts: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()  # intents by trigger
        self.followed: Counter[str] = Counter({"complained": 0})  # what followed a mail, by kind; an alert needs the nought
        self._idle: dict[int, int] = {}

    async def open(self) -> None:
        """Connect; StoreError, KafkaUnavailable or TopicMismatch in one line."""
        kafka = self.settings.kafka
        self.profiles = await asyncio.to_thread(Profiles.open, self.settings)
        self.producer = await producer(kafka)
        try:
            counts = {name: await self._partitions(self.topic[name]) for name in (EVENTS, DEAD_LETTERS, *BESIDE)}
            self._match(counts)
            self.large = await open_producer(kafka)
        except (TopicMismatch, KafkaUnavailable):
            await self.producer.stop()
            raise
        self.places = Topology(self.topic[EVENTS], self.topic[DEAD_LETTERS], counts[EVENTS], counts[DEAD_LETTERS])
        hooks: dict[str, Any] = {"on_assigned": self.assigned, "on_revoked": self.revoked}
        self.app = BatchApp(GROUP, kafka, [self.topic[EVENTS]], self.handle, **hooks, buffer=BUFFER, fetch_bytes=FETCH_BYTES)

    async def _partitions(self, topic: str) -> int:
        try:
            return len(await self.producer.partitions_for(topic))
        except KafkaError as error:
            raise TopicMismatch(f"topic {topic} can't be read ({error}): run 'mailtide topics create'") from error

    def _match(self, counts: dict[str, int]) -> None:
        """Every partition of the events needs its like; more than that do no harm."""
        wanted, kafka = counts[EVENTS], self.settings.kafka
        if short := [f"{self.topic[name]} {counts[name]}" for name in BESIDE if counts[name] < wanted]:
            keyed = "|".join(kafka.topic(topic.name) for topic in TOPICS if topic.partitions is None and topic.name != EVENTS)
            raise TopicMismatch(
                f"{self.topic[EVENTS]} has {wanted} partitions, {', '.join(short)}: the events of the others would never be read. "
                f"Set kafka.partitions = {wanted}, then: kafka-topics.sh --bootstrap-server {kafka.bootstrap} --alter "
                f"--partitions {wanted} --topic '{keyed}' (where {self.topic[EVENTS]} grew later: docs/scaling.md)"
            )

    def update(self, topic: str, value: bytes) -> None:
        """Take a published model in; one that can't be read leaves the one before in service, and ``follow`` says so."""
        try:
            self.passing.update(topic, value)
        except UNREADABLE:
            self.counts["models_refused"] += 1
            raise

    def metrics(self) -> list[Value]:
        """Figures for ``/metrics``."""
        counts = dict(self.counts)
        dead = {"not_json": 0} | {name.removeprefix("dead."): count for name, count in counts.items() if name.startswith("dead.")}
        rest = {name: count for name, count in counts.items() if not name.startswith("dead.")}
        found = [*labelled("mailtide_events_total", rest), *labelled("mailtide_dead_letters_total", dead)]
        found += [*labelled("mailtide_intents_total", self.fired), *labelled("mailtide_feedback_total", self.followed)]
        return [*found, *self.app.metrics("intake")]

    async def close(self) -> None:
        """Finish what runs, leave the group, disconnect."""
        await self.app.stop()
        await self.large.stop()
        await self.producer.stop()
        await asyncio.to_thread(self.profiles.close)

    # -- partitions come and go ---------------------------------------------------------------------

    async def assigned(self, topic: str, number: int) -> None:
        """Take the partition's states over: what lies here, then the changelog's rest. StoreError where they can't be used."""
        try:
            part = await self._part(topic, number)
        except ForeignState as error:
            raise StoreError(self._anew(str(error).split(";")[0])) from error
        except LostState as error:
            raise StoreError(self._again(str(error))) from error
        self.parts[number] = part
        part.publish_watermark()
        place = {"group": self.app.group, "topic": topic, "partition": number, "offset": part.clock.offset}
        log.info("partition taken over", extra=place)

    async def _part(self, topic: str, number: int) -> Partition:
        async with AsyncExitStack() as undone:  # a takeover that fails, or is cancelled, lets go of what it has
            # From here on an earlier owner can't write this partition's changelog (see Partition), and what it left half done is gone.
            changelog = await producer(self.settings.kafka, transactional_id=f"{self.settings.kafka.topic(CUSTOMERS)}-{number}")
            undone.push_async_callback(changelog.stop)
            store = await asyncio.to_thread(Store, self.home / str(number))
            undone.callback(lambda: store.close())
            committed = await self.app.committed(topic, number)
            store = await recover(store, self.settings.kafka, number, self.applied, committed)
            end = (await self.app.end_offsets([(topic, number)]))[topic, number]
            if store.clock.offset > end:
                raise StoreError(
                    f"{topic} partition {number} ends at {end}, but {store.clock.offset} were applied: "
                    f"the topic was made anew; delete {self.home} and the topic {self.topic[CUSTOMERS]}"
                )
            part = Partition(number, store, self.topic[CUSTOMERS], self.topic[GATE], self.producer, changelog, self.app.fail)
            for count, (customer, state) in enumerate(store.items()):
                part.schedule.set(customer, self.next_timer(state))
                if count % 10_000 == 0:
                    await asyncio.sleep(0)
            undone.pop_all()
            return part

    def _anew(self, said: str) -> str:
        """The commands after which the events are applied from the first on."""
        server, customers = self.settings.kafka.bootstrap, self.topic[CUSTOMERS]
        return (
            f"{said} (topic {customers}, folder {self.home.parent}). Stop the workers, then: rm -r {self.home.parent} && "
            f"kafka-topics.sh --bootstrap-server {server} --delete --topic {customers} && {self._uncommit()} && mailtide topics create"
        )

    def _again(self, said: str) -> str:
        """What is left to do where the changelog can't be brought back: the events that are kept are applied from its clock on."""
        return (
            f"{said}. Bring the topic back where you can: {self.home.parent} is untouched and may know more than the events that are kept. "
            f"Else stop the workers, then: {self._uncommit()}"
        )

    def _uncommit(self) -> str:
        """Not a reset to the earliest: where retention took events that is an offset ahead of a new changelog."""
        server, group, events = self.settings.kafka.bootstrap, self.app.group, self.topic[EVENTS]
        return f"kafka-consumer-groups.sh --bootstrap-server {server} --group {group} --topic {events} --delete-offsets"

    async def revoked(self, topic: str, number: int) -> None:
        """Let what is in flight land; the next owner reads it from the changelog."""
        part = self.parts.pop(number, None)
        if part is not None:
            async with part.lock:
                await part.close()

    # -- events --------------------------------------------------------------------------------------

    async def handle(self, batch: Batch) -> None:
        """One batch of one partition."""
        part = self.parts[batch.partition]
        async with part.lock:
            work = _Work(self, part)
            # What the store has already seen needs no second look: neither its dead letters nor its forwards.
            records = batch.records
            if batch.first < part.clock.offset:
                records = [record for record in records if record.offset >= part.clock.offset]
            for start in range(0, len(records), CHUNK):
                chunk = records[start : start + CHUNK]
                await work.events(chunk)
                part.clock = Clock(chunk[-1].offset + 1, part.clock.event_time)
                await asyncio.sleep(0)
            await work.flush(batch.done)

    async def tick(self) -> None:
        """Look at the wall clock's timers, and at partitions whose last offsets are no records."""
        for part in list(self.parts.values()):
            if self.settings.clock == "wall":
                async with part.lock:
                    if self.parts.get(part.number) is part:
                        work = _Work(self, part)
                        await work.timers(time.time())
                        if work:
                            await work.flush(lambda: None)
            place = self.topic[EVENTS], part.number
            position = await self.app.idle_position(*place)
            if position is not None and position == self._idle.get(part.number):
                async with part.lock:
                    if self.parts.get(part.number) is part:
                        await part.skip_to(position, partial(self.app.pass_to, *place, position))
            self._idle[part.number] = -1 if position is None else position


class _Work:
    """What one batch or tick adds up to before its flush."""

    def __init__(self, intake: Intake, part: Partition) -> None:
        self.intake, self.part = intake, part
        self.states: dict[str, bytes] = {}
        self.beside: defaultdict[str, list[tuple[bytes, bytes]]] = defaultdict(list)
        self.outbox = ProducerBatches(intake.producer, intake.large)

    def __bool__(self) -> bool:
        return bool(self.states) or bool(self.outbox)

    async def events(self, records: list[Any]) -> None:
        intake, part, wall = self.intake, self.part, max(time.time(), appended(records[-1]))
        sifted = route(records, intake.places, part.number, wall, self.outbox)
        intake.counts.update(sifted.counts)
        events: list[Event] = sifted.events
        if not events:
            return
        if intake.settings.clock == "wall":
            self._see(max(event.at for event in events))
            await self.apply(events, wall, wall)
            return
        for at, some in slices(events, part.clock.event_time, part.schedule.next):
            # A timer that came due before these events must not know of them.
            await self.timers(at)
            self._see(at)
            await self.apply(some, at, wall)
        await self.timers(part.clock.event_time)

    def _see(self, at: float) -> None:
        self.part.clock = Clock(self.part.clock.offset, max(self.part.clock.event_time, at))

    async def apply(self, events: list[Event], now: float, wall: float) -> None:
        states = self.part.states.of({event.customer for event in events})
        await self.absorb(self.intake.passing.run(states, events, now, wall, self.part.number))

    async def timers(self, now: float) -> None:
        fired: Counter[str] = Counter()
        while due := self.part.schedule.due(now, CHUNK):
            fired.update(due)
            if fired[due[0]] > TOO_OFTEN:
                raise RuntimeError(f"a timer of partition {self.part.number} never advances")
            await self.absorb(self.intake.passing.fire(self.part.states.of(due), now, time.time(), self.part.number))
            await asyncio.sleep(0)

    async def absorb(self, result: Any) -> None:
        """Keep the states and timers; gather the records."""
        part, topic, add, beside = self.part, self.intake.topic, self.outbox.add, self.beside
        if result.identifies:
            # Before any record that follows from them: a mail must find its address.
            await asyncio.to_thread(self.intake.profiles.put_many, result.identifies)
        part.states.keep(result.states)
        self.states.update(result.states)
        for customer, at in result.timers.items():
            part.schedule.set(customer, at)
        for intent in result.intents:
            self.intake.fired[intent.trigger] += 1
            beside[topic[INTENTS]].append((intent.customer.encode(), encode(intent)))
        for record in result.gate:
            key = record.intent_id if isinstance(record, Gone) else record.customer
            beside[topic[GATE]].append((key.encode(), encode(record)))
        for value in result.learning:
            add(topic[VECTORS], 0, None, value)
        for feedback in result.feedback:
            self.intake.followed[feedback.kind] += 1
            beside[topic[FEEDBACK]].append((feedback.customer.encode(), encode(feedback)))
        self.intake.counts.update(result.counts)

    async def flush(self, done: Callable[[], None]) -> None:
        await self.part.flush(self.states, self.beside, self.outbox, done)


def appended(record: Any) -> float:
    """When the broker took the record, in seconds; 0 where the time is its producer's. A clock of ours that was set back is behind it."""
    return float(record.timestamp) / 1000 if record.timestamp_type == LOG_APPEND_TIME else 0.0


def slices(events: list[Event], clock: float, next_timer: Callable[[], float]) -> Iterator[tuple[float, list[Event]]]:
    """Cut events where a timer comes due or event time moves by more than ``SLICE``; with each, the event time at its end."""
    start = 0
    while start < len(events):
        clock = max(clock, events[start].at)
        limit, end = min(next_timer(), clock + SLICE), start + 1
        while end < len(events) and events[end].at < limit:
            clock = max(clock, events[end].at)
            end += 1
        yield clock, events[start:end]
        start = end


async def serve(settings: Settings, stop: asyncio.Event, worker_id: str = "w0") -> None:
    """Run the stage until ``stop``; raises what ended it before that."""
    await run(
        Intake(
            settings,
            worker_id,
            Pass(settings.trigger, settings.sending, settings.shop, settings.training.attribution, settings.kafka.topic(EVENTS)),
            next_timer,
            applied_offset,
        ),
        stop,
    )


async def run(intake: Intake, stop: asyncio.Event) -> None:
    """The stage with its collaborators given."""
    await intake.open()
    caught_up = asyncio.Event()
    models = asyncio.create_task(follow(intake.settings.kafka, (CLUSTERS, RHYTHM, ITEMS, TONES), intake.update, caught_up))
    tasks = [models]
    try:
        # The first batch must not be decided by older models than a restart's last one was.
        ready = asyncio.ensure_future(caught_up.wait())
        await asyncio.wait({ready, models}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if models.done():
            raise KafkaUnavailable("the published models can't be followed") from models.exception()
        await intake.app.start()
        tasks.append(asyncio.create_task(_tick(intake)))
        for task in tasks:
            task.add_done_callback(lambda done: _ended(intake, done))
        with STAGES.watch("intake", lambda: intake.app.ready, intake.metrics):
            await intake.app.wait(stop)
    finally:
        for task in tasks:
            task.cancel()
            await asyncio.wait({task})
        await intake.close()


def _ended(intake: Intake, task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        intake.app.fail(task.exception() or RuntimeError("a background task of intake ended"))


async def _tick(intake: Intake) -> None:
    while True:
        await asyncio.sleep(TICK)
        await intake.tick()
