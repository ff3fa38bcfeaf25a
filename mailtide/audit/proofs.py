"""Reads the topics alone and says which promise was broken, for whom and where.

A topic whose oldest records are gone can no longer prove that something is
missing from it; such checks are then left out and named in ``unproven``.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from mailtide.audit.personal_data import personal, written
from mailtide.audit.recount import recount
from schemas.config import Settings, kafka_python_options
from schemas.errors import UNREADABLE, KafkaUnavailable
from schemas.mail import Claim, Delivery, Gone, Intent, Standing, decoder, seconds
from schemas.mail import GateRecord as GateUnion
from schemas.topics import (
    CLAIMS,
    CLUSTERS,
    CUSTOMERS,
    DELIVERIES,
    DRAFTS,
    EVENTS,
    EXAMPLES,
    FEEDBACK,
    GATE,
    INTENTS,
    ITEMS,
    RELEASES,
    RHYTHM,
    TONES,
    VECTORS,
)
from transport import topics
from transport.blocking import records

# A claim this long after the record that forbids it can't be explained by the two crossing each other.
CROSSING_SECONDS = 5.0
STAGES = (("mailtide-intake", EVENTS), ("mailtide-writer", INTENTS), ("mailtide-sender", DRAFTS))  # in the order that work flows
OURS = (INTENTS, DRAFTS, GATE, CLAIMS, DELIVERIES, FEEDBACK, VECTORS, CLUSTERS, RHYTHM, ITEMS, RELEASES, TONES, EXAMPLES, CUSTOMERS)
MOST_OF_A_KIND = 100  # breaches named in full; the rest are counted


class Breach(msgspec.Struct, frozen=True, omit_defaults=True):
    """One broken promise. ``place``: topic/partition/offset of the record that shows it."""

    kind: str
    intent: str = ""
    place: str = ""
    detail: str = ""


class Report(msgspec.Struct, kw_only=True):
    """``open``: intents without an outcome while a stage still has work; ``lag``: records that each stage has yet to read."""

    intents: int
    repeated: int  # records of intents already told: a crash repeats one rather than losing it
    outcomes: dict[str, int]
    open: int
    events: int
    customers: int  # whose state was compared with their events
    records: int
    lag: dict[str, int]
    unproven: list[str]
    breaches: list[Breach]
    more: dict[str, int] = {}  # breaches beyond those named, by kind
    seconds: float = 0.0


class _Claimed(NamedTuple):
    """One claim: when Kafka took it (seconds), where it stands, and how long after the intent's use-by (seconds)."""

    when: float
    place: str
    withdrawn: bool
    late: float


class _Trail:
    """What was read of the mails' topics."""

    def __init__(self) -> None:
        self.intents: dict[str, tuple[Intent, str]] = {}
        self.repeated = 0
        self.claims: dict[str, list[_Claimed]] = defaultdict(list)  # in the order they were written
        self.deliveries: dict[str, list[tuple[Delivery, float, str]]] = defaultdict(list)
        self.standings: dict[str, tuple[Standing, float]] = {}
        self.gone: dict[str, float] = {}


def audit(settings: Settings) -> Report:
    """Every promise that the topics can prove, checked; raises KafkaUnavailable where they can't be read."""
    started = time.monotonic()
    try:
        return _audit(settings, started)
    except KafkaError as error:
        raise KafkaUnavailable(f"the topics at {settings.kafka.bootstrap} can't be read: {error}") from error


def _audit(settings: Settings, started: float) -> Report:
    trail, breaches, seen = _Trail(), list[Breach](), Counter[str]()
    whole = _whole(settings)
    # The intents first, then what is left to do, then the outcomes: one that is missing in the end was lost.
    _read(settings, INTENTS, trail, breaches, seen)
    lag = _lag(settings)
    for topic in OURS[1:]:
        _read(settings, topic, trail, breaches, seen)
    busy = any(lag.values())
    breaches += _outcomes(trail, whole, busy)
    breaches += _claims(trail)
    breaches += _sent(settings, trail, whole)
    counted = recount(settings, proves=whole[EVENTS] and not lag["mailtide-intake"])
    breaches += [Breach("counts_differ", place=f"{CUSTOMERS}/{number}", detail=detail) for number, detail in counted.wrong]
    missing = trail.intents.keys() - trail.deliveries.keys()
    named, more = _named(breaches)
    return Report(
        intents=len(trail.intents),
        repeated=trail.repeated,
        outcomes=dict(Counter(rows[0][0].reason or rows[0][0].status for rows in trail.deliveries.values())),
        open=len(missing) if busy else 0,
        events=counted.events,
        customers=counted.compared,
        records=sum(seen.values()),
        lag=lag,
        unproven=[f"{topic}: its oldest records are gone" for topic, is_whole in whole.items() if not is_whole] + counted.unproven,
        breaches=named,
        more=more,
        seconds=round(time.monotonic() - started, 3),
    )


def _read(settings: Settings, topic: str, trail: _Trail, breaches: list[Breach], seen: Counter[str]) -> None:
    """Take a topic in, and look for personal data in every record of it."""
    take = {INTENTS: _intent, CLAIMS: _claim, DELIVERIES: _delivery, GATE: _gate}.get(topic)
    for record in records(settings.kafka, topic):
        seen[topic] += 1
        place = f"{topic}/{record.partition}/{record.offset}"
        if record.value is None:
            continue
        readable = written(record.value) if topic == CUSTOMERS else record.value
        if (what := personal(record.key or b"", readable)) and len(breaches) < 10_000:
            breaches.append(Breach("personal_data", place=place, detail=what))
        if take is not None:
            try:
                take(trail, record, place)
            except UNREADABLE as error:
                breaches.append(Breach("unreadable", place=place, detail=str(error)))


_INTENT, _CLAIM, _DELIVERY, _GATE = decoder(Intent), decoder(Claim), decoder(Delivery), decoder(GateUnion)


def _intent(trail: _Trail, record: Any, place: str) -> None:
    intent = _INTENT.decode(record.value)
    trail.repeated += intent.intent_id in trail.intents
    trail.intents.setdefault(intent.intent_id, (intent, place))


def _claim(trail: _Trail, record: Any, place: str) -> None:
    claim = _CLAIM.decode(record.value)
    late = seconds(claim.at) - seconds(claim.draft.intent.expires)
    trail.claims[claim.intent_id].append(_Claimed(record.timestamp / 1000, place, claim.withdrawn, late))


def _delivery(trail: _Trail, record: Any, place: str) -> None:
    delivery = _DELIVERY.decode(record.value)
    trail.deliveries[delivery.intent_id].append((delivery, record.timestamp / 1000, place))


def _gate(trail: _Trail, record: Any, _place: str) -> None:
    told = _GATE.decode(record.value)
    if isinstance(told, Standing):
        trail.standings[told.customer] = (told, record.timestamp / 1000)
    elif isinstance(told, Gone):
        trail.gone.setdefault(told.intent_id, record.timestamp / 1000)


def _outcomes(trail: _Trail, whole: dict[str, bool], busy: bool) -> Iterable[Breach]:
    """Promise 2: every intent ends in exactly one record."""
    for intent_id, rows in trail.deliveries.items():
        sent = sum(delivery.status == "sent" for delivery, _, _ in rows)
        if sent > 1:
            yield Breach("sent_twice", intent_id, rows[1][2], f"{sent} records say sent")
        elif len(rows) > 1:
            ends = ", ".join(delivery.reason or delivery.status for delivery, _, _ in rows)
            yield Breach("several_outcomes", intent_id, rows[1][2], ends)
        if intent_id not in trail.intents and whole[INTENTS]:
            yield Breach("outcome_without_intent", intent_id, rows[0][2])
    if not busy:
        for intent_id, (_, place) in trail.intents.items():
            if intent_id not in trail.deliveries:
                yield Breach("no_outcome", intent_id, place, "every stage has read all there is, and there is no outcome")


def _claims(trail: _Trail) -> Iterable[Breach]:
    """Promises 2 and 8: a claim is the right to send once; before its use-by, and again only after it was withdrawn."""
    for intent_id, claims in trail.claims.items():
        for before, claim in zip([None, *claims], claims, strict=False):
            if claim.withdrawn:
                continue
            if before is not None and not before.withdrawn:
                yield Breach("claimed_twice", intent_id, claim.place, f"the claim at {before.place} was not withdrawn")
            if claim.late > CROSSING_SECONDS:
                yield Breach("sent_after_use_by", intent_id, claim.place, f"{claim.late:.0f} s after")


def _sent(settings: Settings, trail: _Trail, whole: dict[str, bool]) -> Iterable[Breach]:
    """Promises 2 to 5 for what was sent: claimed before, with consent, passed by the guard, while its condition held."""
    service = {trigger.name for trigger in settings.trigger if not trigger.marketing}
    for intent_id, rows in trail.deliveries.items():
        delivery, at, place = rows[0]
        if delivery.status not in ("sent", "unknown"):
            continue
        refused = [rule for rule, verdict in delivery.guard.items() if verdict != "ok"]
        if refused and delivery.origin != "template":  # a template's verdicts are those of the draft that it stands for
            yield Breach("sent_against_guard", intent_id, place, ", ".join(refused))
        claims = [claim for claim in trail.claims.get(intent_id, ()) if not claim.withdrawn]
        if not claims:
            if whole[CLAIMS]:
                yield Breach("sent_without_claim", intent_id, place)
            continue
        claimed, claim_place = claims[-1].when, claims[-1].place
        if claimed > at + CROSSING_SECONDS:
            yield Breach("claimed_after_outcome", intent_id, claim_place)
        if (went := trail.gone.get(intent_id)) is not None and claimed > went + CROSSING_SECONDS:
            yield Breach("sent_after_condition_went", intent_id, claim_place)
        if delivery.trigger not in service:
            yield from _consent(trail.standings.get(delivery.customer), intent_id, claimed, claim_place)


def _consent(known: tuple[Standing, float] | None, intent_id: str, claimed: float, place: str) -> Iterable[Breach]:
    if known is None:
        yield Breach("sent_without_consent", intent_id, place, "the gate was never told of this customer")
        return
    standing, since = known
    if claimed <= since + CROSSING_SECONDS:
        return  # the standing that held then is compacted away
    if standing.unsubscribed or standing.complained:
        yield Breach("sent_after_unsubscribe", intent_id, place)
    elif not standing.consent:
        yield Breach("sent_without_consent", intent_id, place)


def _named(breaches: list[Breach]) -> tuple[list[Breach], dict[str, int]]:
    counts: Counter[str] = Counter()
    named = []
    for breach in breaches:
        counts[breach.kind] += 1
        if counts[breach.kind] <= MOST_OF_A_KIND:
            named.append(breach)
    return named, {kind: count - MOST_OF_A_KIND for kind, count in counts.items() if count > MOST_OF_A_KIND}


def _whole(settings: Settings) -> dict[str, bool]:
    """By topic, whether its oldest records are still there."""
    consumer = KafkaConsumer(**kafka_python_options(settings.kafka))
    try:
        found = {}
        for topic in (INTENTS, CLAIMS, EVENTS):
            name = settings.kafka.topic(topic)
            places = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or ()]
            found[topic] = not any(consumer.beginning_offsets(places).values()) if places else True
        return found
    finally:
        consumer.close()


def _lag(settings: Settings) -> dict[str, int]:
    """Records that each stage has yet to commit. Committed first and ends second, so that it errs towards "busy"."""
    kafka, found = settings.kafka, {}
    consumer = KafkaConsumer(**kafka_python_options(kafka))
    try:
        with topics.admin(kafka) as client:
            for group, topic in STAGES:
                name = kafka.topic(topic)
                committed = _committed(client, kafka.prefix + group)
                places = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or ()]
                begins, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
                found[group] = sum(max(0, ends[place] - committed.get(place, begins[place])) for place in places)
    finally:
        consumer.close()
    return found


def _committed(client: Any, group: str) -> dict[TopicPartition, int]:
    try:
        answer = client.list_group_offsets({group: None})
    except KafkaError:
        return {}
    return {place: held.offset for place, held in answer.get(group, {}).items() if held.offset >= 0}
