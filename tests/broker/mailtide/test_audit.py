"""The audit finds each kind of breach, and none where there is none."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from mailtide.audit.proofs import audit
from mailtide.cli import main
from schemas.config import Settings, Trigger, kafka_python_options
from schemas.mail import Claim, Delivery, Draft, Facts, Gone, Intent, Source, Standing, encode, intent_id, iso
from schemas.topics import CLAIMS, CUSTOMERS, DELIVERIES, DRAFTS, EVENTS, EXAMPLES, FEEDBACK, GATE, INTENTS
from transport.blocking import partition_of, records

pytestmark = pytest.mark.broker


class Story:
    """Writes what stages would."""

    def __init__(self, settings: Settings) -> None:
        self.kafka = settings.kafka
        self.out = KafkaProducer(**kafka_python_options(settings.kafka), linger_ms=0)

    def put(self, topic: str, customer: str, record: msgspec.Struct | bytes, key: str = "", headers: Any = ()) -> None:
        value = record if isinstance(record, bytes) else encode(record)
        number = partition_of(customer, 2)
        self.out.send(self.kafka.topic(topic), value, (key or customer).encode(), list(headers), number).get(10)

    def intent(self, customer: str, trigger: str = "welcome") -> Intent:
        now, expires = iso(time.time()), iso(time.time() + 3600)
        made = Intent(intent_id(customer, trigger, "1"), customer, trigger, "1", now, expires, "c0", Facts(), Source("e", 0, 0), now)
        self.put(INTENTS, customer, made)
        return made

    def claim(self, intent: Intent, withdrawn: bool = False, at: str = "") -> None:
        draft = Draft(intent, "Hi {first_name}", "template", "guided", "base", 1)
        self.put(CLAIMS, intent.customer, Claim(intent.intent_id, intent.customer, intent.trigger, at or intent.due, draft, withdrawn))

    def end(self, intent: Intent, status: Any = "sent", reason: str | None = None, **more: Any) -> None:
        mail = f"<{intent.intent_id}@shop.example.com>"
        of = (
            intent.intent_id,
            intent.customer,
            intent.trigger,
            "c0",
            "base",
            "template",
            "guided",
            status,
            mail,
            intent.due,
            "",
            intent.due,
        )
        ended = Delivery(*of, reason)  # type: ignore[arg-type]
        self.put(DELIVERIES, intent.customer, msgspec.structs.replace(ended, **more))

    def sent(self, customer: str, trigger: str = "welcome", **standing: Any) -> Intent:
        self.put(GATE, customer, Standing(customer, **{"consent": True, "address": True} | standing))
        made = self.intent(customer, trigger)
        self.claim(made)
        self.end(made)
        return made

    def claimed(self, customer: str, *withdrawn: bool, at: str = "", **end: Any) -> Intent:
        """Sent with these claims, in this order."""
        self.put(GATE, customer, Standing(customer, True, True))
        made = self.intent(customer)
        for each in withdrawn:
            self.claim(made, each, at)
        self.end(made, **end)
        return made

    def close(self) -> None:
        self.out.close()

    def read_all(self) -> None:
        """As if every stage had committed the end of what it reads."""
        for group, topic in (("mailtide-intake", EVENTS), ("mailtide-writer", INTENTS), ("mailtide-sender", DRAFTS)):
            consumer = KafkaConsumer(**kafka_python_options(self.kafka), group_id=self.kafka.prefix + group, enable_auto_commit=False)
            places = [TopicPartition(self.kafka.topic(topic), number) for number in range(2)]
            consumer.assign(places)
            consumer.seek_to_end(*places)
            for place in places:
                consumer.position(place)
            consumer.commit()
            consumer.close()


@pytest.fixture
def story(settings: Settings) -> Any:
    made = Story(settings)
    yield made
    made.close()


def kinds(settings: Settings) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for breach in audit(settings).breaches:
        found.setdefault(breach.kind, []).append(breach.intent)
    return found


def test_empty_topics_break_nothing(settings: Settings) -> None:
    report = audit(settings)
    assert report.breaches == []
    assert (report.intents, report.open, report.events) == (0, 0, 0)


def test_a_clean_run(settings: Settings, story: Story) -> None:
    story.sent("ada")
    bea = story.intent("bea")
    story.end(bea, "suppressed", "no_consent")
    story.put(INTENTS, "ada", story.intent("ada"))  # a crash repeats intents
    tries = story.intent("cleo")
    story.put(GATE, "cleo", Standing("cleo", True, True))
    story.claim(tries)
    story.claim(tries, withdrawn=True)
    story.claim(tries)
    story.end(tries, "unknown")
    story.read_all()
    report = audit(settings)
    assert report.breaches == []
    assert report.intents == 3
    assert report.repeated == 2
    assert report.outcomes == {"sent": 1, "no_consent": 1, "unknown": 1}
    assert report.lag == {"mailtide-intake": 0, "mailtide-writer": 0, "mailtide-sender": 0}
    assert msgspec.json.decode(msgspec.json.encode(report))["breaches"] == []


def test_what_waits_is_open_and_what_is_lost_is_a_breach(settings: Settings, story: Story) -> None:
    lost = story.intent("ada")
    report = audit(settings)
    assert (report.open, report.breaches) == (1, [])
    assert report.lag["mailtide-writer"] == 1
    story.read_all()
    report = audit(settings)
    assert report.open == 0
    assert [(breach.kind, breach.intent) for breach in report.breaches] == [("no_outcome", lost.intent_id)]
    assert report.breaches[0].place.startswith(f"{INTENTS}/{partition_of('ada', 2)}/")


def test_each_breach_is_named(settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailtide.audit.proofs.CROSSING_SECONDS", -60.0)  # records of one second count as in order
    twice = story.sent("ada")
    story.end(twice)
    two_ends = story.sent("bea")
    story.end(two_ends, "suppressed", "expired")
    unclaimed = story.intent("cleo")
    story.end(unclaimed)
    withdrawn = story.intent("dora")
    story.claim(withdrawn, withdrawn=True)
    story.end(withdrawn)
    orphan = intent_id("eve", "welcome", "1")
    now = iso(time.time())
    story.end(Intent(orphan, "eve", "welcome", "1", now, now, "c0", Facts(), Source("e", 0, 0), now), "failed")
    left = story.sent("fay", unsubscribed=True)
    complained = story.sent("fitz", complained=True)
    never_said_yes = story.sent("gus", consent=False)
    untold = story.intent("hal")
    story.claim(untold)
    story.end(untold)
    went = story.intent("ida")
    story.put(GATE, "ida", Gone("ida", went.intent_id, "ordered"), went.intent_id)
    story.put(GATE, "ida", Standing("ida", True, True))
    story.claim(went)
    story.end(went)
    again = story.claimed("kim", False, False)
    once_more = story.claimed("lea", False, True, False, False)
    late = story.claimed("mia", False, at=iso(time.time() + 7200))
    refused = story.claimed("nia", False, origin="generated", guard={"slots": "ok", "claims": "half price"})
    story.claimed("oda", False, guard={"writer": "queue too long"})  # a template, with what was refused before it
    for topic in (GATE, INTENTS, CLAIMS, DELIVERIES):
        story.put(topic, "ida", b"{broken")
        story.put(topic, "ida", b'{"customer":"\xff","intent_id":"\xff"}')
    story.put(EXAMPLES, "x", b'{"text":"write to maria@customers.example.com"}')
    story.put(FEEDBACK, "x", b'{"firstName":"Maria"}')
    found = {kind: sorted(intents) for kind, intents in kinds(settings).items()}
    found.pop("claimed_after_outcome", None)  # of the bent clock; it has a test of its own
    assert found == {
        "claimed_twice": sorted([again.intent_id, once_more.intent_id]),
        "sent_after_use_by": [late.intent_id],
        "sent_against_guard": [refused.intent_id],
        "sent_twice": [twice.intent_id],
        "several_outcomes": [two_ends.intent_id],
        "sent_without_claim": sorted([unclaimed.intent_id, withdrawn.intent_id]),
        "outcome_without_intent": [orphan],
        "sent_after_unsubscribe": sorted([left.intent_id, complained.intent_id]),
        "sent_without_consent": sorted([never_said_yes.intent_id, untold.intent_id]),
        "sent_after_condition_went": [went.intent_id],
        "unreadable": [""] * 8,
        "personal_data": ["", ""],
    }


def test_a_claim_that_follows_its_outcome(settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    story.put(GATE, "ada", Standing("ada", True, True))
    ended = story.intent("ada")
    story.end(ended)
    story.claim(ended)
    assert kinds(settings) == {}  # the two may have crossed
    monkeypatch.setattr("mailtide.audit.proofs.CROSSING_SECONDS", -0.001)
    found = kinds(settings)
    assert found["claimed_after_outcome"] == [ended.intent_id]


def test_a_breach_is_named_with_its_place_and_the_command_exits_with_1(
    settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = story.claimed("ada", False, False)
    for name, value in (("KAFKA", settings.kafka.bootstrap), ("KAFKA_PREFIX", settings.kafka.prefix), ("HOME", settings.home)):
        monkeypatch.setenv(f"MAILTIDE_{name}", value)
    with pytest.raises(SystemExit) as ended:
        main.app(["audit", "--json"])
    (breach,) = json.loads(capsys.readouterr().out)["breaches"]
    place = f"{CLAIMS}/{partition_of('ada', 2)}"
    assert ended.value.code == 1
    assert breach == {
        "kind": "claimed_twice",
        "intent": twice.intent_id,
        "place": f"{place}/1",
        "detail": f"the claim at {place}/0 was not withdrawn",
    }


def test_a_refusal_that_came_after_the_claim_is_none(settings: Settings, story: Story) -> None:
    sent = story.sent("ada")
    story.put(GATE, "ada", Standing("ada", consent=False, address=True, unsubscribed=True))
    story.put(GATE, "ada", Gone("ada", sent.intent_id, "ordered"), sent.intent_id)
    assert kinds(settings) == {}


def test_service_mail_needs_no_consent(settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailtide.audit.proofs.CROSSING_SECONDS", -60.0)
    story.sent("ada", "complaint_care", consent=False, unsubscribed=True)
    care = msgspec.structs.replace(settings, trigger=(Trigger("complaint_care", on="Support Ticket Opened", marketing=False),))
    assert "sent_without_consent" not in kinds(care)
    assert "sent_after_unsubscribe" in kinds(settings)


async def test_counts_are_compared_with_the_events(settings: Settings, story: Story) -> None:
    """Through the real intake: twice the same id, one in the wrong partition, one unreadable; then a state that is wrong."""
    from mailtide.audit.proofs import _lag
    from streams.intake import stage

    def event(customer: str, identity: str) -> bytes:
        now = iso(time.time() - 60)
        return json.dumps(
            {"messageId": identity, "type": "track", "event": "Product Viewed", "userId": customer, "timestamp": now}
        ).encode()

    for customer in ("ada", "bea", "cleo"):
        for number in range(5):
            story.put(EVENTS, customer, event(customer, f"{customer}-{number}"))
    story.put(EVENTS, "ada", event("ada", "ada-0"))
    story.put(EVENTS, "ada", b"no json")
    wrong = 1 - partition_of("bea", 2)
    story.out.send(settings.kafka.topic(EVENTS), event("bea", "bea-6"), b"bea", partition=wrong).get(10)
    stop = asyncio.Event()
    task = asyncio.create_task(stage.serve(settings, stop, "w0"))
    try:
        deadline = time.monotonic() + 90
        while (await asyncio.to_thread(_lag, settings))["mailtide-intake"]:
            assert not task.done() and time.monotonic() < deadline
            await asyncio.sleep(0.1)
    finally:
        stop.set()
        await task
    report = await asyncio.to_thread(audit, settings)
    assert report.breaches == []
    assert (report.events, report.customers, report.unproven) == (17, 3, [])
    story.put(CUSTOMERS, "ada", await asyncio.to_thread(_state, settings, "bea"))  # one too many
    story.put(CUSTOMERS, "bea", await asyncio.to_thread(_state, settings, "cleo"))  # one lost
    story.put(CUSTOMERS, "cleo", b"torn")
    report = await asyncio.to_thread(audit, settings)
    assert [breach.kind for breach in report.breaches] == ["counts_differ"] * 3
    said = " ".join(sorted(breach.detail for breach in report.breaches))
    assert "ada: the state counts 6 events, there are 5" in said
    assert "bea: the state counts 5 events, there are 6" in said
    assert "cleo: the state can't be read" in said


def _state(settings: Settings, customer: str) -> bytes:
    return [record.value for record in records(settings.kafka, CUSTOMERS) if record.key == customer.encode()][-1]
