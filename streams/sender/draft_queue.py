"""One partition's queue: drafts that wait, in which order they go, and which of them are done."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from schemas.mail import Claim, Delivery, Draft, encode
from streams.metrics import Value, labelled
from streams.sender.group_commit import GroupCommit
from streams.sender.ledger import Ledger

# Outcomes that alerts ask about: they stand at nought from the start, or Prometheus misses the first one.
ASKED = (("sent", ""), ("failed", ""), ("unknown", ""), ("suppressed", "expired"))
CLOCK_JITTER = 1.0  # seconds; a wall clock that goes back further was set
AHEAD, AHEAD_OF_A_BURST = 2, 8  # mails claimed for each connection
BURST, BURST_LINGER = 250, 0.05  # drafts on the queues; seconds
ASK_AGAIN = 5.0  # seconds after which a draft that waits for intake is asked whether it has expired


@dataclass(eq=False)
class PendingDraft:
    """One draft. ``target``: how far intake must have read ``customer.events`` before this may go; -1 before it was first asked."""

    offset: int
    draft: Draft
    target: int = -1
    attempts: int = 0


@dataclass(eq=False)
class DraftQueue:
    """The drafts of one partition; offsets are those of ``email.drafts``."""

    number: int
    ledger: Ledger
    group_commit: GroupCommit  # where claims and outcomes are written
    alive: bool = True
    beats: int = 0  # turns of its loop
    checked: float = field(default_factory=time.monotonic)  # when Kafka last confirmed that the partition is ours
    position: int = -1  # next offset to read; -1 before the first record
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sending: set[asyncio.Task[None]] = field(default_factory=set)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # of outcomes, by trigger, status and reason
    _wall: float = 0.0  # at the last look
    _open: set[int] = field(default_factory=set)
    _lowest: list[int] = field(default_factory=list)
    _intents: set[str] = field(default_factory=set)
    _ready: list[tuple[int, int, PendingDraft]] = field(default_factory=list)
    _waiting: list[tuple[float, int, PendingDraft]] = field(default_factory=list)
    _behind: list[tuple[int, int, float, PendingDraft]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, offset: int, draft: Draft | None) -> bool:
        """Take a record in; False for one there is nothing to do for: unreadable (None), ended, or on the queue already."""
        self.position = offset + 1
        if draft is None or draft.intent.intent_id in self._intents or draft.intent.intent_id in self.ledger.ended:
            return False
        self._intents.add(draft.intent.intent_id)
        self._open.add(offset)
        heapq.heappush(self._lowest, offset)
        self.again(PendingDraft(offset, draft))
        return True

    def done(self, job: PendingDraft) -> None:
        """The intent has its outcome on ``email.deliveries``."""
        self._open.discard(job.offset)
        self._intents.discard(job.draft.intent.intent_id)

    async def claim(self, topic: str, claims: Sequence[Claim]) -> None:
        """Acknowledged when it returns; raises where another worker has fenced this one."""
        await self.group_commit.write([(topic, claim.customer.encode(), encode(claim)) for claim in claims])

    async def write(self, topic: str, delivery: Delivery) -> None:
        """An outcome, fenced as claims are: for a worker that sleeps between asking and writing. An intent that has one gets no second."""
        if delivery.intent_id in self.ledger.ended:
            return
        await self.group_commit.write([(topic, delivery.customer.encode(), encode(delivery))])
        self.ledger.outcome(delivery)
        self.counts[delivery.trigger, delivery.status, delivery.reason or ""] += 1

    def states(self) -> dict[str, int]:
        """Drafts by what they wait for."""
        return {"ready": len(self._ready), "asleep": len(self._waiting), "behind": len(self._behind), "sending": len(self.sending)}

    def committable(self) -> int:
        """Every draft below has ended; -1 where nothing was read."""
        while self._lowest and self._lowest[0] not in self._open:
            heapq.heappop(self._lowest)
        return self._lowest[0] if self._lowest else self.position

    def again(self, job: PendingDraft) -> None:
        """May go now."""
        heapq.heappush(self._ready, (job.draft.intent.priority, job.offset, job))
        self.wake.set()

    def sleep(self, job: PendingDraft, until: float) -> None:
        """Waits for a wall time (seconds); then all is asked anew, freshness too."""
        job.target = -1
        heapq.heappush(self._waiting, (until, job.offset, job))

    def behind(self, job: PendingDraft) -> None:
        """Waits until intake has read up to ``job.target``."""
        heapq.heappush(self._behind, (job.target, job.offset, time.monotonic() + ASK_AGAIN, job))

    def fresh(self, jobs: Iterable[PendingDraft], end: int) -> list[PendingDraft]:
        """Those that intake is not behind for, the others wait: an order that was published before ``end`` cancels the mail."""
        passed = []
        for job in jobs:
            job.target = end if job.target < 0 else job.target
            if self.ledger.watermark >= job.target:
                passed.append(job)
            else:
                self.ledger.release(job.draft.intent.customer, job.draft.intent.intent_id)
                self.behind(job)
        return passed

    def take(self, most: int, wall: float) -> list[PendingDraft]:
        """The next drafts to ask the gate about, care first."""
        if wall < self._wall - CLOCK_JITTER:  # a wait of a moment must not become one of what the clock was set back by
            while self._waiting:
                self.again(heapq.heappop(self._waiting)[2])
        self._wall = wall
        while self._waiting and self._waiting[0][0] <= wall:
            self.again(heapq.heappop(self._waiting)[2])
        while self._behind and (self._behind[0][0] <= self.ledger.watermark or self._behind[0][2] <= time.monotonic()):
            self.again(heapq.heappop(self._behind)[3])
        return [heapq.heappop(self._ready)[2] for _ in range(min(most, len(self._ready)))]

    def pause(self, wall: float) -> float:
        """Seconds until something here may be worth doing, where nothing arrives before."""
        pauses = [1.0]
        if self._waiting:
            pauses.append(self._waiting[0][0] - wall)
        if self._behind:
            pauses.append(self._behind[0][2] - time.monotonic())
        return max(0.0, min(pauses))


def room(queues: dict[int, DraftQueue], connections: int, claimed: int) -> int:
    """Mails that a queue may claim now, where so many are claimed; no more than its share, or the first would have all.

    A kill leaves what is claimed ``unknown``: so only what keeps the connections busy. Where many wait, more are claimed
    and a transaction waits for company, or the broker's work for it would set the pace.
    """
    burst = sum(len(queue) for queue in queues.values()) >= BURST
    for queue in queues.values():
        queue.group_commit.linger = BURST_LINGER if burst else 0.0
    most = connections * (AHEAD_OF_A_BURST if burst else AHEAD)
    return max(0, min(most - claimed, -(-most // len(queues))))


def wake(queues: dict[int, DraftQueue]) -> None:
    """There is room: for any of them."""
    for queue in queues.values():
        queue.wake.set()


def queue_metrics(queues: dict[int, DraftQueue], outcomes: Counter[tuple[str, str, str]], most: int) -> list[Value]:
    """Figures for ``/metrics``; ``most``: drafts of a queue from which its partition isn't fetched."""
    held = list(queues.values())
    states: Counter[str] = Counter()
    for queue in held:
        states.update(queue.states())
    paused = sum(len(queue) >= most for queue in held)
    found = [*labelled("mailtide_sender_drafts", states), *(("mailtide_sender_outcomes_total", of, n) for of, n in dict(outcomes).items())]
    return [*found, ("mailtide_stage_partitions", ("sender",), len(held)), ("mailtide_fetch_paused", ("sender",), paused)]
