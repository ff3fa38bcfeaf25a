"""What strangers write among the sender's own records, against a real Kafka and a real mail server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest
import structlog
from kafka import KafkaConsumer, TopicPartition

from mailtide.local import mail_server
from schemas.config import Settings, kafka_python_options
from schemas.mail import encode, iso
from schemas.topics import CLAIMS, DELIVERIES, DRAFTS
from streams.sender import ledger, stage
from tests.broker.sender.test_sender import bench, draft_for, know, serving, until, with_smtp
from transport.clients import partition_of

pytestmark = pytest.mark.broker


@pytest.fixture
def local(settings: Settings) -> Iterator[Settings]:
    """Settings with the local mail server running."""
    server = mail_server.start(settings)
    yield with_smtp(settings, server.port)
    server.stop()


async def test_what_can_t_be_read_among_outcomes_and_claims_is_named_and_passed_over(local: Settings) -> None:
    """A mail that was claimed, and one that was sent, are not sent again for all that; the others go out."""
    know(local, "ada")
    number, kept = partition_of(b"ada", local.kafka.partitions), time.time()
    claimed, sent, fresh = (draft_for("ada", occurrence=each) for each in ("1", "2", "3"))
    end = ledger.delivery_of(sent, "sent", at=iso(kept), message_id="m")
    timeless = encode(msgspec.structs.replace(end, at="yesterday", intent_id="i")), encode(ledger.claim_of(draft_for("ada"), "now"))
    async with bench(local) as b:
        for topic, strange in zip((DELIVERIES, CLAIMS), timeless, strict=True):
            for value in (b"{", b"\xff", None, b'{"customer":"\xff"}', b"[" * 100_000, strange):
                await b.out.send_and_wait(local.kafka.topic(topic), value, b"ada", number)
        await b.put(DELIVERIES, "ada", end)
        await b.put(CLAIMS, "ada", ledger.claim_of(claimed, iso(kept)))
        await b.standing("ada")
        for draft in (claimed, sent, fresh):
            await b.draft(draft)
        with structlog.testing.capture_logs() as said:
            recovered, _ = await ledger.recover(local.kafka, number, "wall")
        assert recovered.claims.keys() == {claimed.intent.intent_id}
        named = [(line["topic"], line["partition"], line["offset"]) for line in said]
        assert named == [(local.kafka.topic(topic), number, offset) for topic in (DELIVERIES, CLAIMS) for offset in range(6)]
        async with serving(local):
            await until(lambda: len(b.mails()) == 1 and _ended(local, number) >= 3)
    assert b.mails()[0]["Message-ID"] == f"<{fresh.intent.intent_id}@tidewater.example.com>"


def _ended(settings: Settings, number: int) -> int:
    """How many drafts of this partition are committed."""
    with KafkaConsumer(**kafka_python_options(settings.kafka), group_id=settings.kafka.prefix + stage.GROUP) as asked:
        return asked.committed(TopicPartition(settings.kafka.topic(DRAFTS), number)) or 0
