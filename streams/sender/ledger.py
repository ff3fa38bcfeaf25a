"""What a partition's sender must remember: outcomes, claims, mails by customer, standings, conditions that went.

All of it is recovered from the topics (``email.gate``, ``email.claims``,
``email.deliveries``), so that any worker can take the partition over.
"""

from __future__ import annotations

import bisect
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import structlog
from aiokafka import TopicPartition

from models.mail.gate import History
from models.mail.message import message_id
from schemas.config import KafkaSettings, ShopSettings
from schemas.errors import UNREADABLE
from schemas.mail import Claim, Delivery, Draft, Gone, Reason, Standing, Status, Watermark, decoder, seconds
from schemas.mail import GateRecord as GateUnion
from schemas.topics import CLAIMS, DELIVERIES, GATE
from transport.clients import reader

log = structlog.get_logger()

# Drafts and claims are kept for 30 days; what ended before that can't come again.
MEMORY_SECONDS = 31 * 86400.0

_GATE = decoder(GateUnion)
_CLAIM = decoder(Claim)
_DELIVERY = decoder(Delivery)


class Ledger:
    """The memory of one partition. ``clock`` says by which time a mail counts towards the cap (see ``models.mail.gate``).

    ``now``: seconds that nobody sets back or forward; what ended is forgotten by it after MEMORY_SECONDS, its place under the cap, too.
    """

    def __init__(self, clock: Literal["event", "wall"], now: Callable[[], float] = time.monotonic) -> None:
        self.clock, self._now = clock, now
        self.standings: dict[str, Standing] = {}
        self.gone: set[str] = set()
        self.watermark = -1
        self.ended: set[str] = set()
        self._oldest: deque[tuple[float, str, str]] = deque()  # what ended: when, intent, customer
        self.claims: dict[str, Claim] = {}  # without an outcome yet
        self._sends: dict[str, list[tuple[float, str]]] = {}  # customer -> (time, intent), ascending

    def gate(self, value: bytes | None) -> None:
        """Apply one record of ``email.gate``; a tombstone says nothing."""
        if value is None:
            return
        try:
            record = _GATE.decode(value)
        except UNREADABLE as error:  # passed over, mail that hangs on it stays unsent; a stop would hold up everybody's
            log.error("a gate record that can't be read", error=str(error))
            return
        if isinstance(record, Standing):
            self.standings[record.customer] = record
        elif isinstance(record, Gone):
            if record.intent_id not in self.ended:
                self.gone.add(record.intent_id)
        elif isinstance(record, Watermark):
            self.watermark = max(self.watermark, record.offset)

    def claim(self, claim: Claim) -> None:
        """A claim as it was acknowledged; one that was withdrawn leaves nothing behind."""
        intent_id = claim.intent_id
        if claim.withdrawn:
            self.claims.pop(intent_id, None)
            self.release(claim.customer, intent_id)
        elif intent_id not in self.ended:
            self.reserve(claim.customer, intent_id, self._counted(claim.at, claim.draft.intent.due))
            self.claims[intent_id] = claim

    def outcome(self, delivery: Delivery, age: float = 0.0) -> None:
        """An intent's end, ``age`` seconds ago. What was sent, or may have been, counts towards the cap."""
        intent_id, now = delivery.intent_id, self._now()
        if intent_id not in self.ended:
            self._oldest.append((now - age, intent_id, delivery.customer))
        self.ended.add(intent_id)
        self.claims.pop(intent_id, None)
        self.gone.discard(intent_id)
        if delivery.status in ("sent", "unknown"):
            self.reserve(delivery.customer, intent_id, self._counted(delivery.at, delivery.due))
        else:
            self.release(delivery.customer, intent_id)
        while self._oldest and now - self._oldest[0][0] > MEMORY_SECONDS:
            _, old, customer = self._oldest.popleft()
            self.ended.discard(old)
            self.release(customer, old)

    def _counted(self, at: str, due: str) -> float:
        return seconds(at if self.clock == "wall" else due)

    def reserve(self, customer: str, intent_id: str, counted: float) -> None:
        """Count a mail towards the cap from now on, before its outcome is known; once for each intent."""
        self.release(customer, intent_id)
        bisect.insort(self._sends.setdefault(customer, []), (counted, intent_id))

    def release(self, customer: str, intent_id: str) -> None:
        """Count it no longer: it was not sent."""
        sends = self._sends.get(customer)
        if sends:
            sends[:] = [entry for entry in sends if entry[1] != intent_id]
            if not sends:
                del self._sends[customer]

    def history(self, customer: str, intent_id: str) -> History:
        """What the gate asks of the customer's past; a mail doesn't count against itself."""
        sends = [at for at, other in self._sends.get(customer, ()) if other != intent_id]
        return History(intent_id in self.ended, sends)


async def committed(kafka: KafkaSettings, topic: str, partition: int, since: float | None = None) -> AsyncIterator[Any]:
    """The partition's committed records up to its end as it is now; ``since``: seconds, record time."""
    consumer = await reader(kafka, isolation_level="read_committed")
    try:
        place = TopicPartition(kafka.topic(topic), partition)
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        start = None
        if since is not None:
            found = (await consumer.offsets_for_times({place: int(since * 1000)}))[place]
            start = found.offset if found is not None else end
            consumer.seek(place, start)
        else:
            await consumer.seek_to_beginning(place)
        while await consumer.position(place) < end:
            batches = await consumer.getmany(timeout_ms=200)
            for record in batches.get(place, ()):
                yield record
    finally:
        await consumer.stop()


async def recover(kafka: KafkaSettings, partition: int, clock: Literal["event", "wall"]) -> tuple[Ledger, int]:
    """The partition's memory from the topics, and the offset of ``email.gate`` to read on from.

    Call it only after the partition's claims are fenced: a claim that another
    worker adds afterwards would be missing here.
    """
    ledger, since = Ledger(clock), time.time() - MEMORY_SECONDS
    async for record in committed(kafka, DELIVERIES, partition, since):
        with _passed_over(record):
            ledger.outcome(_DELIVERY.decode(record.value or b""), max(0.0, time.time() - record.timestamp / 1000))
    async for record in committed(kafka, CLAIMS, partition, since):
        with _passed_over(record):
            ledger.claim(_CLAIM.decode(record.value or b""))
    position = 0
    async for record in committed(kafka, GATE, partition):
        ledger.gate(record.value)
        position = record.offset + 1
    return ledger, position


@contextmanager
def _passed_over(record: Any) -> Iterator[None]:
    """Go on after a record that can't be read: a stop would hold up everybody's mail.

    No mail is sent twice by that: senders write whole, readable records alone, and Kafka checks their sums, so it is none of theirs.
    """
    try:
        yield
    except (*UNREADABLE, ValueError) as error:  # the second: a time that is none
        place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        log.error("a record that can't be read", error=str(error), **place)


def claim_of(draft: Draft, at: str, withdrawn: bool = False) -> Claim:
    """The record that a draft is being sent from now on, or is not after all."""
    intent = draft.intent
    return Claim(intent.intent_id, intent.customer, intent.trigger, at, draft, withdrawn)


def orphan(claim: Claim, at: str, shop: ShopSettings) -> Delivery:
    """The outcome of a claim whose sender died: nobody knows whether the server took the mail, so it is not sent again."""
    return delivery_of(claim.draft, "unknown", at=at, message_id=message_id(claim.intent_id, shop))


def delivery_of(
    draft: Draft, status: Status, *, at: str, message_id: str = "", reason: Reason | None = None, code: int | None = None
) -> Delivery:
    """The record of an outcome, with what the draft knows."""
    intent = draft.intent
    return Delivery(
        intent_id=intent.intent_id,
        customer=intent.customer,
        trigger=intent.trigger,
        cluster=intent.cluster,
        release=draft.release,
        origin=draft.origin,
        mode=draft.mode,
        status=status,
        message_id=message_id,
        due=intent.due,
        written=draft.written,
        at=at,
        reason=reason,
        code=code,
        guard=draft.guard,
    )
