"""One draft's way: gate, freshness, mail, gate again, claim, DATA, outcome."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

import structlog
from aiokafka import AIOKafkaProducer

from models.mail.gate import decide, gate_time
from models.mail.message import Mail
from schemas.config import Settings
from schemas.mail import Claim, Delivery, Draft, encode, iso
from schemas.topics import CLAIMS, DELIVERIES, EXAMPLES
from streams.sender.draft_queue import DraftQueue, PendingDraft, room, wake
from streams.sender.examples import example_of
from streams.sender.ledger import claim_of, delivery_of
from streams.sender.mail_renderer import MailRenderer, RenderedMail
from streams.sender.smtp import Mailer
from streams.tasks import wait
from transport.end_offsets import EndOffsets

LONGEST_BACKOFF = 60.0  # seconds between two tries of a mail that the server put off, or whose customer has no profile here

log = structlog.get_logger()


class Dispatch:
    """For all ``queues`` of a worker. ``examples`` takes what the trainer learns from.

    ``ours`` says whether Kafka has confirmed a queue's partition less than ``lease`` seconds ago, and asks where it has not;
    ``fail`` ends the worker.
    """

    def __init__(
        self,
        settings: Settings,
        queues: dict[int, DraftQueue],
        renderer: MailRenderer,
        mailer: Mailer,
        end_offsets: EndOffsets,
        examples: AIOKafkaProducer,
        lease: float,
        ours: Callable[[DraftQueue], Awaitable[bool]],
        fail: Callable[[Exception], None],
    ) -> None:
        self.settings, self.kafka, self.queues, self.lease = settings, settings.kafka, queues, lease
        self.renderer, self.mailer, self.end_offsets, self.producer = renderer, mailer, end_offsets, examples
        self.claimed = 0  # mails between their claims and the server's answers
        self._ours, self._fail = ours, fail

    @contextlib.contextmanager
    def _busy(self, mails: int) -> Iterator[None]:
        """So many are claimed meanwhile."""
        self.claimed += mails
        try:
            yield
        finally:
            self.claimed -= mails
            wake(self.queues)

    def now(self, draft: Draft) -> float:
        """Seconds, by the clock that counts for this mail."""
        return gate_time(draft.intent, time.time(), self.settings.clock)

    def _admits(self, queue: DraftQueue, job: PendingDraft) -> Delivery | float | None:
        """Asks the gate: None to send (the mail counts towards the cap from now on), a wall time to ask again, or the outcome."""
        intent, ledger, now = job.draft.intent, queue.ledger, self.now(job.draft)
        standing, history = ledger.standings.get(intent.customer), ledger.history(intent.customer, intent.intent_id)
        verdict = decide(job.draft, standing, history, now, self.settings, intent.intent_id in ledger.gone)
        if verdict.action == "send":
            ledger.reserve(intent.customer, intent.intent_id, verdict.counted)
            return None
        ledger.release(intent.customer, intent.intent_id)
        return verdict.until if verdict.action == "wait" else delivery_of(job.draft, "suppressed", at=iso(now), reason=verdict.reason)

    async def _filter(self, queue: DraftQueue, jobs: Iterable[PendingDraft]) -> list[PendingDraft]:
        """The drafts that the gate lets through now; the others sleep, or their outcome is written."""
        passed, ended = [], []
        for job in jobs:
            answer = self._admits(queue, job)
            if answer is None:
                passed.append(job)
            elif isinstance(answer, Delivery):
                ended.append((answer, job))
            else:
                queue.sleep(job, answer)
        await asyncio.gather(*(self.record(queue, delivery, job) for delivery, job in ended))
        return passed

    async def round(self, queue: DraftQueue, jobs: list[PendingDraft]) -> None:
        """Drafts that may go now: each goes, waits on its queue, or ends."""
        passed = await self._filter(queue, jobs)
        if passed:
            passed = queue.fresh(passed, await self.end_offsets.of(queue.number))
        if not passed:
            return
        if not await self.mailer.ready():
            for job in passed:
                self._put_off(queue, job, self.mailer.pause)
            return
        rendered = await self.renderer.write([job.draft for job in passed], self.now, time.time())
        mails: list[tuple[PendingDraft, Mail]] = []
        for job in passed:
            answer = rendered.get(job.draft.intent.intent_id)
            if answer is None:
                self._put_off(queue, job, LONGEST_BACKOFF)
            elif isinstance(answer, RenderedMail):
                job.draft = answer.draft
                mails.append((job, answer.mail))
            else:
                await self.record(queue, answer, job)
        if len(rendered) < len(passed):
            log.warning(
                "mails wait: intake on another worker keeps these customers' profiles in another store;"
                " give all workers the same store.profiles and store.key (MAILTIDE_STORE_PROFILES, MAILTIDE_STORE_KEY), or one home",
                partition=queue.number,
                mails=len(passed) - len(rendered),
            )
        await self._dispatch(queue, mails)

    async def _dispatch(self, queue: DraftQueue, mails: list[tuple[PendingDraft, Mail]]) -> None:
        """Claimed as there is room for them; the gate is asked once more, with no wait between its answer and the claim's dispatch."""
        while mails and queue.alive:
            queue.wake.clear()
            free = room(self.queues, self.settings.smtp.connections, self.claimed)
            if not free:
                await wait(queue.wake, 1.0)
                continue
            now, mails = mails[:free], mails[free:]
            kept = {id(job) for job in await self._filter(queue, [job for job, _ in now])}
            await self._claim_and_send(queue, [(job, mail) for job, mail in now if id(job) in kept])

    async def _claim_and_send(self, queue: DraftQueue, mails: list[tuple[PendingDraft, Mail]]) -> None:
        if not mails:
            return
        with self._busy(len(mails)):
            asked = time.monotonic()
            await self._claim(queue, [claim_of(job.draft, iso(self.now(job.draft))) for job, _ in mails])
            for job, mail in mails:
                task = asyncio.create_task(self._send(queue, job, mail, asked))
                queue.sending.add(task)
                task.add_done_callback(lambda done: self._sent(queue, done))
            await asyncio.sleep(0)  # they begin, and take up room, before this gives its own back

    def _sent(self, queue: DraftQueue, task: asyncio.Task[None]) -> None:
        queue.sending.discard(task)
        queue.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error if isinstance(error, Exception) else RuntimeError(str(error)))

    async def _claim(self, queue: DraftQueue, claims: list[Claim]) -> None:
        """Acknowledged when it returns; raises where another worker has fenced this one."""
        await queue.claim(self.kafka.topic(CLAIMS), claims)

    async def _send(self, queue: DraftQueue, job: PendingDraft, mail: Mail, claimed: float) -> None:
        """From an acknowledged claim to the outcome, or back to the queue."""
        draft, ended = job.draft, None
        refused: list[Delivery] = []

        def may() -> bool:
            if not queue.alive or time.monotonic() - claimed >= self.lease:
                return False
            verdict = self._admits(queue, job)
            if isinstance(verdict, Delivery):
                refused.append(verdict)
            return verdict is None

        with self._busy(1):
            answer = await self.mailer.deliver(mail, may)
        at = iso(self.now(draft))
        if answer.kind in ("sent", "failed", "unknown"):
            code = None if answer.kind == "sent" else answer.code
            ended = delivery_of(draft, answer.kind, at=at, message_id=mail.message_id, code=code)
        elif refused:
            ended = refused[0]
        if ended is not None:
            await self.record(queue, ended, job)
            if ended.status == "sent":
                await self.producer.send(self.kafka.topic(EXAMPLES), encode(example_of(draft, at)), draft.intent.cluster.encode())
            return
        await self._claim(queue, [claim_of(draft, iso(self.now(draft)), withdrawn=True)])
        job.attempts += answer.kind == "later"
        self._put_off(queue, job, min(LONGEST_BACKOFF, 0.25 * 2.0**job.attempts) if answer.kind == "later" else 0.0)

    def _put_off(self, queue: DraftQueue, job: PendingDraft, pause: float) -> None:
        queue.ledger.release(job.draft.intent.customer, job.draft.intent.intent_id)
        queue.sleep(job, time.time() + pause)
        queue.wake.set()

    async def record(self, queue: DraftQueue, delivery: Delivery, job: PendingDraft | None) -> None:
        """Write an outcome, once the partition is known to be ours still; an intent that has one gets no second."""
        if not await self._ours(queue):
            return  # another worker's now: it has ended the claim as unknown
        await asyncio.shield(queue.write(self.kafka.topic(DELIVERIES), delivery))  # cancelled, the queue must still learn of it
        if job is not None:
            queue.done(job)
