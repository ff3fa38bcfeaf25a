"""The writer's stage: ``email.intents`` in, ``email.drafts`` out. Pool, else model, else approved template; never nothing.

Intents wait in one heap by priority and due time, so that the care lane goes
first, and go to the engine only as rows come free: what the pool can serve by
then, it serves. The engine runs in its own thread; the loop stays responsive.
An intent's offset is committed after its draft is acknowledged.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import json
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec

from models.mail.guard import passes
from models.mail.slots import ALWAYS
from models.phrasebook.book import Book
from models.writer import Adapter, Engine, Model, locate, precision_for, prepare
from models.writer.pool import Key, Pool
from models.writer.prompt import Prompt, narrow, prompt_of, render
from schemas.config import Settings
from schemas.errors import UNREADABLE, ModelError, PhrasebookError
from schemas.mail import Choice, Draft, Intent, Origin, decoder, encode, iso, seconds
from schemas.release import Snapshot
from schemas.topics import CLUSTERS, DRAFTS, INTENTS, RELEASES
from streams.faust.app import Batch, BatchApp
from streams.metrics import STAGES, writing
from streams.tasks import wait
from streams.writer.drafting import draft, seed_of
from streams.writer.releases import Releases
from transport.clients import producer
from transport.follow import follow

log = logging.getLogger("mailtide.writer")
GROUP = "mailtide-writer"
AHEAD = 4  # mails queued in the engine beyond its rows, so that a free row never waits for the loop
STATS_EVERY = 2.0  # seconds
IDLE = 0.25  # seconds without intents after which the pool is filled ahead
ASKED = 4000  # prompts whose makings are remembered, as many as the pool has shelves
_INTENT = decoder(Intent)


class PendingIntent:
    """One intent on its way; ``due`` orders equals."""

    __slots__ = ("adapter", "batch", "intent", "key", "prompt", "release")

    def __init__(self, intent: Intent, batch: _Open, prompt: Prompt, release: str, adapter: Adapter | None) -> None:
        self.intent, self.batch, self.prompt, self.release, self.adapter = intent, batch, prompt, release, adapter
        self.key: Key = (prompt, release)

    def __lt__(self, other: PendingIntent) -> bool:
        return (self.intent.priority, self.intent.due) < (other.intent.priority, other.intent.due)


class _Open:
    """A batch that is done when the last of its drafts is acknowledged."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.left = batch, len(batch.records)

    def one(self) -> None:
        self.left -= 1
        self.batch.touch()
        if self.left == 0:
            self.batch.done()


class WriterStage:
    """What the stage does, apart from joining and leaving the group."""

    def __init__(self, settings: Settings, engine: Engine, releases: Releases, book: Book, outbox: Any, worker_id: str = "w0") -> None:
        self.worker_id = worker_id
        self.settings, self.engine, self.releases, self.book, self.outbox = settings, engine, releases, book, outbox
        w = settings.writer
        self._draft = functools.partial(draft, engine, book, w)
        self.pool = Pool(w.pool_size, w.pool_oversample, w.fresh_share)
        self.descriptions: dict[str, str] = {}
        self._epoch, self._unwritten = -1, False
        self.waiting: list[PendingIntent] = []
        self.writing: Counter[Key] = Counter()  # mails in hand by prompt and release
        self.wake = asyncio.Event()
        self.origins: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.shed = Counter({"pool": 0, "template": 0, "expired": 0})  # mails that no model was asked for, by what went instead
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._filling = 0
        self._asked: OrderedDict[Key, Adapter | None] = OrderedDict()

    def stats(self) -> dict[str, Any]:
        """Counters since the start."""
        c = self.engine.counters
        return {
            "tokens": c.tokens,
            "busy_seconds": round(c.busy, 3),
            "mails": c.mails,
            "waiting": len(self.waiting),
            **{origin: self.origins[origin] for origin in ("generated", "pool", "template")},
            "shed": dict(self.shed),
            "guard_refused": dict(self.refused),
            "releases_refused": self.releases.refused,
        }

    # -- what comes in ------------------------------------------------------------------------------

    async def handle(self, batch: Batch) -> None:
        """Queue a fetch's intents; the batch is done when their drafts are acknowledged."""
        opened = _Open(batch)
        for record in batch.records:
            try:
                intent = _INTENT.decode(record.value or b"")
            except UNREADABLE as error:
                log.error("intent skipped: %s", error, extra={"topic": batch.topic, "partition": batch.partition, "offset": record.offset})
                opened.one()
                continue
            prompt = narrow(prompt_of(intent, self.descriptions.get(intent.cluster, "")), self.book)
            release, adapter = self.releases.choose(intent.cluster, intent.intent_id)
            heapq.heappush(self.waiting, PendingIntent(intent, opened, prompt, release, adapter))
        self.wake.set()

    def followed(self, topic: str, value: bytes) -> None:
        """A record of ``model.clusters``."""
        if topic == CLUSTERS:
            snapshot = msgspec.json.decode(value, type=Snapshot)
            if snapshot.epoch >= self._epoch:
                self._epoch = snapshot.epoch
                self.descriptions = {cluster.id: cluster.description for cluster in snapshot.clusters}

    async def released(self, value: bytes) -> None:
        """A record of ``model.releases``: from the next mail on. Mails go on while it loads."""
        if await asyncio.to_thread(self.releases.apply, value):
            serving = self.releases.serving()
            self.pool.keep_releases(serving.keys())
            self._asked = OrderedDict((key, serving[key[1]]) for key in self._asked if key[1] in serving)

    # -- what goes out ------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``; what waits then stays uncommitted and is written after the restart."""
        noted = 0.0
        while not stop.is_set():
            self.wake.clear()
            self._dispatch()
            if not self.waiting and not self._tasks:
                self._fill()
            if self.failed.done():
                self.failed.result()
            if time.monotonic() - noted > STATS_EVERY:
                noted = time.monotonic()
                await asyncio.to_thread(self.write_stats)
            await wait(self.wake, IDLE)

    def write_stats(self) -> None:
        """Leave the counters where ``mailtide demo`` and the monitor read them. A full disk stops no mail for them, and is said once."""
        folder = Path(self.settings.home) / "run"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / f".writer-{self.worker_id}.{os.getpid()}.json"
            beside.write_text(json.dumps(self.stats()))
            beside.replace(folder / f"writer-{self.worker_id}.json")
        except OSError as error:
            if not self._unwritten:
                log.error("%s: the writer's counters can't be written (%s): make room", folder, error.strerror)
            self._unwritten = True
        else:
            self._unwritten = False

    def _dispatch(self) -> None:
        """Give out what can go now: pool and templates at once, the rest as rows come free."""
        if len(self.waiting) > self._capacity():
            self._shed()
        room = self.engine.rows + AHEAD
        held: list[PendingIntent] = []
        while self.waiting and self.writing.total() < room:
            job = heapq.heappop(self.waiting)
            if self._at_once(job):
                continue
            coming = self.pool.have(job.key) + self.writing[job.key]
            if self.pool.have(job.key) < self.pool.size <= coming and not self.pool.fresh(job.intent.intent_id):
                held.append(job)  # the pool will have enough when those in hand are written
                continue
            self._note(job)
            self.writing[job.key] += 1
            self._start(self._generate(job))
        for job in held:
            heapq.heappush(self.waiting, job)

    def _at_once(self, job: PendingIntent) -> bool:
        """Serve without the model where that is right: bound to be suppressed, expired, or the pool holds enough."""
        if job.intent.foreseen is not None:
            self.shed[job.intent.foreseen] += 1
            self._start(self._template(job, {"writer": f"not written: {job.intent.foreseen}"}))
            return True
        if _expired(self.settings, job.intent, time.time()):
            self.shed["expired"] += 1
            self._start(self._template(job, {"writer": "expired before it was written"}))
            return True
        if self.pool.have(job.key) >= self.pool.size and not self.pool.fresh(job.intent.intent_id):
            return self._from_pool(job)
        return False

    def _from_pool(self, job: PendingIntent) -> bool:
        kept = self.pool.take(job.key, job.intent.customer)
        if kept is None:
            return False
        self._note(job)
        self._start(self._send(job, kept.draft.text, "pool", kept.draft.seed, kept.draft.choices, kept.guard))
        return True

    def _note(self, job: PendingIntent) -> None:
        """Remember that a prompt is in demand, and how to write more for it."""
        self.pool.ask(job.key)
        self._asked[job.key] = job.adapter
        self._asked.move_to_end(job.key)
        while len(self._asked) > ASKED:
            self._asked.popitem(last=False)

    def _capacity(self) -> int:
        """Mails that the engine writes in ``writer.queue_seconds``."""
        return max(1, int(self.settings.writer.queue_seconds / max(self.engine.seconds_a_mail, 1e-3)))

    def _shed(self) -> None:
        """What would wait too long: the least urgent beyond the capacity, counted without those that the pool will serve."""
        needs: Counter[Key] = Counter()
        keep: list[PendingIntent] = []
        capacity, counted = self._capacity(), 0
        for job in sorted(self.waiting):
            needs[job.key] += 1
            written_for_it = needs[job.key] <= self.pool.size - self.pool.have(job.key) or self.pool.fresh(job.intent.intent_id)
            counted += written_for_it
            if counted <= capacity or not written_for_it:
                keep.append(job)
            elif self._from_pool(job):
                self.shed["pool"] += 1
            else:
                self.shed["template"] += 1
                self._start(self._template(job, {"writer": "queue too long"}))
        self.waiting = keep  # sorted, thus a heap

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.wake.set()
        if not task.cancelled() and task.exception() is not None and not self.failed.done():
            self.failed.set_exception(task.exception() or RuntimeError())

    async def _generate(self, job: PendingIntent) -> None:
        try:
            await self._compose(job)
        finally:
            self.writing[job.key] -= 1
            self.writing += Counter()  # forgets those at nought

    async def _compose(self, job: PendingIntent) -> None:
        """Model, guard, one retry, template."""
        verdicts: dict[str, str] = {}
        for attempt in range(2):
            try:
                seed = seed_of(job.intent.intent_id, attempt)
                found = await self._draft(job.prompt, job.adapter, seed, job.intent.priority, job.batch.batch.touch)
            except ModelError as error:
                log.warning("a mail was not written: %s", error)
                verdicts = {"writer": str(error)}
                continue
            except asyncio.CancelledError:
                return
            if found is None:
                verdicts = {"phrasebook": f"no chapter for {job.intent.trigger}"}
                break
            written, verdicts = found
            if passes(verdicts):
                self.pool.offer(job.key, written, verdicts, job.intent.customer)
                await self._send(job, written.text, "generated", written.seed, written.choices, verdicts)
                return
            self.refused.update(rule for rule, verdict in verdicts.items() if verdict != "ok")
        await self._template(job, verdicts)

    async def _template(self, job: PendingIntent, verdicts: dict[str, str]) -> None:
        """The approved fallback; empty text where the book has none, which the sender refuses with these verdicts."""
        text = ""
        choices: tuple[Choice, ...] = ()
        try:
            said = self.book.fallback(job.intent.trigger, frozenset(job.prompt.slots) | ALWAYS)
            text = self.book.compose(said)
            choices = tuple(Choice(move, clause.id, 1.0) for move, clause in said.items())
        except PhrasebookError as error:
            verdicts = verdicts | {"phrasebook": str(error)}
        await self._send(job, text, "template", 0, choices, verdicts)

    async def _send(
        self, job: PendingIntent, text: str, origin: Origin, seed: int, choices: tuple[Choice, ...], guard: dict[str, str]
    ) -> None:
        mode = self.settings.writer.mode if origin != "template" else "guided"
        made = Draft(job.intent, text, origin, mode, job.release, seed, choices, guard, iso(time.time()), render(job.prompt))
        topic = self.settings.kafka.topic(DRAFTS)
        await (await self.outbox.send(topic, encode(made), job.intent.customer.encode(), partition=job.batch.batch.partition))
        self.origins[origin] += 1
        job.batch.one()

    # -- idle time ----------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Write ahead for the prompt most in demand."""
        key = self.pool.hungry()
        if key is not None and key in self._asked:
            for _ in range(min(self.engine.rows, self.pool.wants(key))):
                self._filling += 1
                self._start(self._ahead(key, self._asked[key], self._filling))

    async def _ahead(self, key: Key, adapter: Adapter | None, number: int) -> None:
        try:
            found = await self._draft(key[0], adapter, seed_of(f"{key}", number), 9)
        except (ModelError, asyncio.CancelledError):
            return
        if found and passes(found[1]):
            self.pool.offer(key, *found)
        elif found:
            self.pool.skip(key)


def _expired(settings: Settings, intent: Intent, now: float) -> bool:
    """By the gate's clock: with the event clock, lateness counts from when the intent was fired."""
    at = seconds(intent.due) + max(0.0, now - seconds(intent.fired)) if settings.clock == "event" else now
    return at > seconds(intent.expires)


def open_model(settings: Settings) -> Model:
    """The base model's graph, built at the first start (seconds). Raises ModelError."""
    path = locate(settings.writer.base_model)
    folder = prepare(path, Path(settings.home).resolve() / "writer", precision_for(settings.writer.device), settings.training.rank)
    return Model(folder, settings.writer.threads)


_serving: list[WriterStage] = []


def stats() -> dict[str, Any]:
    """Counters of the stage that serves in this process; empty before there is one."""
    return _serving[-1].stats() if _serving else {}


async def serve(settings: Settings, stop: asyncio.Event, worker_id: str = "w0") -> None:
    """Write until ``stop``. Raises ModelError, KafkaUnavailable, PhrasebookError at the start."""
    book = Book.load()
    model = await asyncio.to_thread(open_model, settings)
    engine = Engine(model, settings.writer.rows)
    outbox = await producer(settings.kafka, linger_ms=5)
    stage = WriterStage(settings, engine, Releases(settings, model.shape, model.base_sha256, model.rank), book, outbox, worker_id)
    _serving.append(stage)
    app = BatchApp(GROUP, settings.kafka, [settings.kafka.topic(INTENTS)], stage.handle, grace=5.0, passes_markers=True)
    caught_up = asyncio.Event()

    def apply(topic: str, value: bytes) -> Awaitable[None] | None:
        if topic == RELEASES:
            return stage.released(value)
        stage.followed(topic, value)
        return None

    following = asyncio.create_task(follow(settings.kafka, [RELEASES, CLUSTERS], apply, caught_up))
    try:
        await asyncio.wait([asyncio.ensure_future(caught_up.wait()), following], return_when=asyncio.FIRST_COMPLETED)
        await app.start()
        running = [asyncio.ensure_future(stage.run(stop)), asyncio.ensure_future(app.wait(stop)), following]
        with STAGES.watch("writer", lambda: app.ready, lambda: [*writing(stage.stats()), *app.metrics("writer")]):
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await app.stop()
        following.cancel()
        await asyncio.to_thread(engine.close)
        await asyncio.wait([following])
        await outbox.stop()
        await asyncio.to_thread(stage.write_stats)
        _serving.remove(stage)
