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
from streams.sender.draft_queue import Desk, Job, room, wait, wake
from streams.sender.examples import example_of
from streams.sender.ledger import claim_of, delivery_of
from streams.sender.mail_renderer import Letter, Letters
from streams.sender.smtp import Mailer
from transport.end_offsets import Ends

LONGEST_BACKOFF = 60.0  # seconds between two tries of a mail that the server put off, or whose customer has no profile here

log = structlog.get_logger()


class Dispatch:
    """For all ``desks`` of a worker. ``examples`` takes what the trainer learns from.

    ``ours`` says whether Kafka has confirmed a desk's partition less than ``lease`` seconds ago, and asks where it has not;
    ``fail`` ends the worker.
    """

    def __init__(
        self,
        settings: Settings,
        desks: dict[int, Desk],
        letters: Letters,
        mailer: Mailer,
        ends: Ends,
        examples: AIOKafkaProducer,
        lease: float,
        ours: Callable[[Desk], Awaitable[bool]],
        fail: Callable[[Exception], None],
    ) -> None:
        self.settings, self.kafka, self.desks, self.lease = settings, settings.kafka, desks, lease
        self.letters, self.mailer, self.ends, self.producer = letters, mailer, ends, examples
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
            wake(self.desks)

    def now(self, draft: Draft) -> float:
        """Seconds, by the clock that counts for this mail."""
        return gate_time(draft.intent, time.time(), self.settings.clock)

    def _admits(self, desk: Desk, job: Job) -> Delivery | float | None:
        """Asks the gate: None to send (the mail counts towards the cap from now on), a wall time to ask again, or the outcome."""
        intent, ledger, now = job.draft.intent, desk.ledger, self.now(job.draft)
        standing, history = ledger.standings.get(intent.customer), ledger.history(intent.customer, intent.intent_id)
        verdict = decide(job.draft, standing, history, now, self.settings, intent.intent_id in ledger.gone)
        if verdict.action == "send":
            ledger.reserve(intent.customer, intent.intent_id, verdict.counted)
            return None
        ledger.release(intent.customer, intent.intent_id)
        return verdict.until if verdict.action == "wait" else delivery_of(job.draft, "suppressed", at=iso(now), reason=verdict.reason)

    async def _filter(self, desk: Desk, jobs: Iterable[Job]) -> list[Job]:
        """The drafts that the gate lets through now; the others sleep, or their outcome is written."""
        passed, ended = [], []
        for job in jobs:
            answer = self._admits(desk, job)
            if answer is None:
                passed.append(job)
            elif isinstance(answer, Delivery):
                ended.append((answer, job))
            else:
                desk.sleep(job, answer)
        await asyncio.gather(*(self.record(desk, delivery, job) for delivery, job in ended))
        return passed

    async def round(self, desk: Desk, jobs: list[Job]) -> None:
        """Drafts that may go now: each goes, waits on its desk, or ends."""
        passed = await self._filter(desk, jobs)
        if passed:
            passed = desk.fresh(passed, await self.ends.of(desk.number))
        if not passed:
            return
        if not await self.mailer.ready():
            for job in passed:
                self._put_off(desk, job, self.mailer.pause)
            return
        letters = await self.letters.write([job.draft for job in passed], self.now, time.time())
        mails: list[tuple[Job, Mail]] = []
        for job in passed:
            letter = letters.get(job.draft.intent.intent_id)
            if letter is None:
                self._put_off(desk, job, LONGEST_BACKOFF)
            elif isinstance(letter, Letter):
                job.draft = letter.draft
                mails.append((job, letter.mail))
            else:
                await self.record(desk, letter, job)
        if len(letters) < len(passed):
            log.warning(
                "mails wait: intake on another worker keeps these customers' profiles in another store;"
                " give all workers the same store.profiles and store.key (MAILTIDE_STORE_PROFILES, MAILTIDE_STORE_KEY), or one home",
                partition=desk.number,
                mails=len(passed) - len(letters),
            )
        await self._dispatch(desk, mails)

    async def _dispatch(self, desk: Desk, mails: list[tuple[Job, Mail]]) -> None:
        """Claimed as there is room for them; the gate is asked once more, with no wait between its answer and the claim's dispatch."""
        while mails and desk.alive:
            desk.wake.clear()
            free = room(self.desks, self.settings.smtp.connections, self.claimed)
            if not free:
                await wait(desk.wake, 1.0)
                continue
            now, mails = mails[:free], mails[free:]
            kept = {id(job) for job in await self._filter(desk, [job for job, _ in now])}
            await self._claim_and_send(desk, [(job, mail) for job, mail in now if id(job) in kept])

    async def _claim_and_send(self, desk: Desk, mails: list[tuple[Job, Mail]]) -> None:
        if not mails:
            return
        with self._busy(len(mails)):
            asked = time.monotonic()
            await self._claim(desk, [claim_of(job.draft, iso(self.now(job.draft))) for job, _ in mails])
            for job, mail in mails:
                task = asyncio.create_task(self._send(desk, job, mail, asked))
                desk.sending.add(task)
                task.add_done_callback(lambda done: self._sent(desk, done))
            await asyncio.sleep(0)  # they begin, and take up room, before this gives its own back

    def _sent(self, desk: Desk, task: asyncio.Task[None]) -> None:
        desk.sending.discard(task)
        desk.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error if isinstance(error, Exception) else RuntimeError(str(error)))

    async def _claim(self, desk: Desk, claims: list[Claim]) -> None:
        """Acknowledged when it returns; raises where another worker has fenced this one."""
        await desk.claim(self.kafka.topic(CLAIMS), claims)

    async def _send(self, desk: Desk, job: Job, mail: Mail, claimed: float) -> None:
        """From an acknowledged claim to the outcome, or back to the desk."""
        draft, ended = job.draft, None
        refused: list[Delivery] = []

        def may() -> bool:
            if not desk.alive or time.monotonic() - claimed >= self.lease:
                return False
            verdict = self._admits(desk, job)
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
            await self.record(desk, ended, job)
            if ended.status == "sent":
                await self.producer.send(self.kafka.topic(EXAMPLES), encode(example_of(draft, at)), draft.intent.cluster.encode())
            return
        await self._claim(desk, [claim_of(draft, iso(self.now(draft)), withdrawn=True)])
        job.attempts += answer.kind == "later"
        self._put_off(desk, job, min(LONGEST_BACKOFF, 0.25 * 2.0**job.attempts) if answer.kind == "later" else 0.0)

    def _put_off(self, desk: Desk, job: Job, pause: float) -> None:
        desk.ledger.release(job.draft.intent.customer, job.draft.intent.intent_id)
        desk.sleep(job, time.time() + pause)
        desk.wake.set()

    async def record(self, desk: Desk, delivery: Delivery, job: Job | None) -> None:
        """Write an outcome, once the partition is known to be ours still; an intent that has one gets no second."""
        if not await self._ours(desk):
            return  # another worker's now: it has ended the claim as unknown
        await asyncio.shield(desk.write(self.kafka.topic(DELIVERIES), delivery))  # cancelled, the desk must still learn of it
        if job is not None:
            desk.done(job)
