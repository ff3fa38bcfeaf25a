"""Everything that a careless producer may write, through the real stage: a dead letter with its reason or a count, and nothing stops."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import msgspec
import pytest

from mailtide.cli.customer import show
from schemas.config import Settings
from schemas.errors import KafkaUnavailable
from schemas.topics import DEAD_LETTERS, EVENTS
from streams.intake.stage import serve
from tests.broker.intake.test_intake import caught_up, everything, until
from transport.clients import producer

pytestmark = pytest.mark.broker
EMOJI = "кунде-🧁\u202e{first_name}<b>\"'"


def event(**more: Any) -> bytes:
    body = {"messageId": "m", "type": "track", "event": "Product Viewed", "userId": "ok", "timestamp": "2025-03-01T12:00:00Z", **more}
    return json.dumps({key: value for key, value in body.items() if value is not ...}, ensure_ascii=False).encode()


BAD: list[tuple[bytes | None, str]] = [
    (b"not json", "not_json"),
    (b"\xff\xfe\x00", "not_json"),
    (b'["an", "array"]', "not_an_event"),
    (b'"text"', "not_an_event"),
    (event(type=7), "not_an_event"),
    (event(event={"name": "x"}), "not_an_event"),
    (event(userId=["c"]), "not_an_event"),
    (event(userId=..., anonymousId=...), "no_customer"),
    (event(userId=" ", anonymousId=""), "no_customer"),
    (event(timestamp=...), "bad_time"),
    (event(timestamp=1_740_830_400), "bad_time"),
    (event(timestamp="1890-01-01T00:00:00Z"), "bad_time"),
    (event(timestamp="50000-01-01T00:00:00Z"), "future"),
    (event(timestamp="+050000-01-01T00:00:00Z"), "future"),
    (event(note="x" * (2 * 1024 * 1024 - 1024)), "too_large"),
    (b"\x00\x00\x00\x00\x07\x0aAvro", "unsupported_format"),
    (b"Obj\x01\x04\x14avro.codec", "unsupported_format"),
    (None, "unsupported_format"),
]
GOOD: list[bytes] = [
    *[event(messageId="again") for _ in range(100)],
    event(messageId="wrong types inside", properties={"total": "12,50", "products": "bread", "price": []}),
    event(messageId="unknown name", event="Cat Petted"),
    event(messageId="emoji", userId=EMOJI, properties={"name": "<script>\r\nBcc: x@y.example {coupon_code}\u202e"}),
]


async def test_what_can_not_be_read_is_set_aside_and_the_rest_counts(settings: Settings) -> None:
    client, name = await producer(settings.kafka, max_request_size=3 << 20), settings.kafka.topic(EVENTS)
    for number, (value, why) in enumerate(BAD):
        await client.send_and_wait(name, key=f"k-{why}".encode(), value=value, partition=number % 2)
    for number, value in enumerate(GOOD):
        batch = client.create_batch()  # without a key, and half of them in the wrong partition
        batch.append(key=None, value=value, timestamp=None, headers=[])
        await (await client.send_batch(batch, name, partition=number % 2))
    await client.stop()
    stop = asyncio.Event()
    stage = asyncio.create_task(serve(settings, stop))
    try:
        await until(lambda: _done(settings, stage), 120.0)
    finally:
        stop.set()
        await stage
    dead = await everything(settings, DEAD_LETTERS)
    reasons = Counter(dict(record.headers)["mailtide.reason"].decode() for record in dead)
    assert reasons == Counter(why for _, why in BAD)
    values = Counter(record.value for record in dead)
    assert values == Counter(value for value, _ in BAD), "a dead letter is the record as it came"
    counts = await asyncio.to_thread(lambda: show(settings, "ok")["counts"])
    assert counts == {"Product Viewed": 2, "other": 1}
    assert (await asyncio.to_thread(lambda: show(settings, EMOJI)["counts"])) == {"Product Viewed": 1}


async def _done(settings: Settings, stage: asyncio.Task[None]) -> bool:
    if stage.done():
        await stage  # raises what ended it
    return await caught_up(settings)


async def test_a_stage_without_kafka_is_one_line(settings: Settings) -> None:

    nowhere = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, bootstrap="127.0.0.1:1"))
    with pytest.raises(KafkaUnavailable, match=r"no Kafka answers at 127\.0\.0\.1:1") as caught:
        await serve(nowhere, asyncio.Event())
    assert "\n" not in str(caught.value)
