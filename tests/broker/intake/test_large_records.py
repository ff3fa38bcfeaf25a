"""What a shop's compression lets through and ours may not: set aside or moved, whole where that can be, and nothing stops."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import NewTopic

from mailtide.cli.customer import show
from schemas.config import KafkaSettings, Settings
from schemas.events import LONGEST_CUSTOMER
from schemas.topics import DEAD_LETTERS, EVENTS, LARGEST_DEAD_LETTER
from streams.intake.stage import serve
from tests.broker.intake.test_intake import caught_up, everything, until
from transport import topics
from transport.clients import partition_of, producer

pytestmark = pytest.mark.broker
BLOCK = random.Random(1).randbytes(1_000_000)  # zstd sees that it comes again; gzip, which looks back 32 KiB, doesn't
WORDY = {
    "order_id": "o" * 5000,
    "products": [{"name": f"Bread {n}", "category": f"{n} " + "x" * 900, "price": 2} for n in range(600)],
}


def event(**more: Any) -> bytes:
    return json.dumps({"type": "page", "userId": "ok", "timestamp": "2025-03-01T12:00:00Z", **more}).encode()


def away_from(customer: str) -> int:
    return 1 - partition_of(customer.encode(), 2)


@pytest.fixture
def older(kafka: str, prefix: str, tmp_path: Path) -> Settings:
    """As ``settings``, with dead letters as they were declared before."""
    made = Settings(home=str(tmp_path / "home"), kafka=KafkaSettings(bootstrap=kafka, prefix=prefix, partitions=2))
    with topics.admin(made.kafka) as client:
        client.create_topics([NewTopic(made.kafka.topic(DEAD_LETTERS), 1, 1, topic_configs={"max.message.bytes": "4194304"})])
    topics.create(made)
    return made


async def taken(settings: Settings, codec: str, *records: dict[str, Any]) -> dict[str, Any]:
    """Publish these, a batch each, and one event behind them in each partition; the dead letters by reason when all is read."""
    name = settings.kafka.topic(EVENTS)
    client = await producer(settings.kafka, compression_type=codec, max_request_size=1 << 26)
    for record in records:
        await client.send_and_wait(name, **record)
    for number in range(2):
        await client.send_and_wait(name, event(messageId=f"after {number}"), key=b"ok", partition=number)
    await client.stop()
    stop = asyncio.Event()
    stage = asyncio.create_task(serve(settings, stop))

    async def done() -> bool:
        if stage.done():
            await stage  # raises what ended it
        return await caught_up(settings)

    try:
        await until(done, 120.0)
    finally:
        stop.set()
        await stage
    assert counts(settings, "ok") == {"page": 2}
    return {dict(letter.headers)["mailtide.reason"].decode(): letter for letter in await everything(settings, DEAD_LETTERS)}


def counts(settings: Settings, customer: str) -> Any:
    return show(settings, customer)["counts"]


async def test_a_large_value_is_set_aside_whole(settings: Settings) -> None:
    value, headers = event(note="y" * (5 << 20)), [("trace", b"t")]
    letters = await taken(settings, "gzip", {"value": value, "key": b"k", "partition": 0, "headers": headers, "timestamp_ms": 77})
    letter = letters["too_large"]
    assert (letter.key, letter.value, letter.headers[0]) == (b"k", value, headers[0])
    assert "mailtide.cut" not in dict(letter.headers)


async def test_an_event_with_large_headers_goes_home(settings: Settings) -> None:
    record = {"value": event(userId="far"), "key": b"k", "partition": away_from("far"), "headers": [("a", b"z" * 2_200_000)]}
    assert await taken(settings, "gzip", record) == {}
    assert counts(settings, "far") == {"page": 1}


async def test_an_event_too_large_for_its_home_is_set_aside(settings: Settings) -> None:
    headers = [("a", BLOCK * 3)]
    record = {"value": event(userId="far"), "key": b"k", "partition": away_from("far"), "headers": headers}
    letter = (await taken(settings, "zstd", record))["too_large"]
    assert (letter.key, letter.value, letter.headers[0]) == (b"k", event(userId="far"), headers[0])


async def test_the_longest_id_has_room_in_every_record_and_a_longer_one_is_set_aside(settings: Settings) -> None:
    far = "🧁" * LONGEST_CUSTOMER
    traits = {"email": "a@b.example", "consent": {"marketing": True}, "birthday": "1990-02-03"}
    at_home = partition_of(far.encode(), 2)
    several = [
        {"value": event(userId=far, type="identify", traits=traits), "partition": at_home},
        {"value": event(userId=far, type="track", event="Order Completed", properties=WORDY), "partition": at_home},
        {"value": event(userId="u" * 1_040_000), "partition": 0},
    ]
    letter = (await taken(settings, "gzip", *several))["too_large"]
    assert letter.value == several[2]["value"]
    assert counts(settings, far) == {"identify": 1, "Order Completed": 1}


async def test_what_no_limit_lets_through_is_cut_and_says_so(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    value = BLOCK * (LARGEST_DEAD_LETTER // len(BLOCK) + 1)
    letter = (await taken(settings, "zstd", {"value": value, "key": b"k", "partition": 1}))["too_large"]
    assert letter.key == b"k"
    assert letter.value == value[: len(letter.value)] != b""
    assert dict(letter.headers)["mailtide.cut"] == str(len(value) + 1).encode()
    said = [record for record in caplog.records if record.message.startswith("too large for ")]
    assert [(record.__dict__["topic"], record.__dict__["partition"], record.__dict__["offset"]) for record in said] == [
        (settings.kafka.topic(EVENTS), 1, 0)
    ]


async def test_dead_letters_with_the_older_limit_are_cut_sooner(older: Settings) -> None:
    assert [line for line in topics.differences(older) if "max.message.bytes is 4194304, declared 16777216" in line]
    several = [{"value": BLOCK * 5, "key": b"k", "partition": 0}, {"value": event(userId=""), "partition": 0}]
    letters = await taken(older, "zstd", *several)
    assert dict(letters["too_large"].headers)["mailtide.cut"] == b"5000001"
    assert letters["no_customer"].value == several[1]["value"], "what comes after a refusal is taken"
