"""A replay on a real broker: where each event lies, that the gate sees all before it acknowledged, that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.partitioner import murmur2

from mailtide.replay.publish import Summary, replay
from schemas import topics
from schemas.config import KafkaSettings, Settings
from schemas.errors import SourceError, TopicMismatch
from transport.clients import reader

pytestmark = pytest.mark.broker


async def test_events_lie_where_the_shop_would_put_them_and_days_wait_at_the_gate(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    rows = [
        {
            "type": "page",
            "userId": f"c-{number % 50}",
            "messageId": f"m-{number}",
            "timestamp": f"2026-01-{1 + number // 1000:02d}T10:00:00Z",
        }
        for number in range(3000)
    ]
    file.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    topic = settings.kafka.topic(topics.EVENTS)
    consumer = await reader(settings.kafka)
    places = _assign(consumer, topic)
    gates: list[tuple[float, int]] = []

    async def gate(day: float) -> None:
        gates.append((day, sum((await consumer.end_offsets(places)).values())))

    seen: list[int] = []
    try:
        summary = await replay(settings, str(file), None, None, gate=gate, progress=seen.append)
        assert summary == Summary(3000, 50)
        assert [published for _, published in gates] == [0, 1000, 2000]
        assert [later[0] - earlier[0] for earlier, later in pairwise(gates)] == [86_400.0, 86_400.0]
        assert seen[-1] == 3000
        found = await _read(consumer, 3000)
    finally:
        await consumer.stop()
    assert sorted(found, key=lambda row: int(row["messageId"][2:])) == rows


def _assign(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    places = [TopicPartition(topic, partition) for partition in range(2)]
    consumer.assign(places)
    return places


async def _read(consumer: AIOKafkaConsumer, wanted: int) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    last: dict[str, int] = {}
    while len(found) < wanted:
        for place, records in (await consumer.getmany(timeout_ms=1000)).items():
            for record in records:
                row = msgspec.json.decode(record.value)
                assert record.key == row["userId"].encode()
                assert place.partition == (murmur2(record.key) & 0x7FFFFFFF) % 2
                number = int(row["messageId"][2:])
                assert last.get(row["userId"], -1) < number
                last[row["userId"]] = number
                found.append(row)
    return found


async def test_a_bad_source_publishes_nothing(settings: Settings) -> None:
    with pytest.raises(SourceError, match="no source"):
        await replay(settings, "dunnhumby", None, None)


async def test_missing_topics_are_named(kafka: str, prefix: str, tmp_path: Path, with_changes: Callable[..., Settings]) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"type": "page", "userId": "a", "timestamp": "2026-01-01T00:00:00Z"}\n')
    bare = Settings(home=str(tmp_path), kafka=KafkaSettings(bootstrap=kafka, prefix=prefix))
    with pytest.raises(TopicMismatch, match="topics create"):
        await replay(bare, str(file), None, None)
