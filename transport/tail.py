"""Kafka topics read as they grow, without a group: each ``new`` gives what came since the last."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, TopicPartition

from schemas.config import Settings, kafka_python_options
from schemas.errors import UNREADABLE
from schemas.learning import Learning
from schemas.mail import Delivery, Example, Feedback
from schemas.release import Release, Snapshot
from schemas.topics import CLUSTERS, DELIVERIES, EXAMPLES, FEEDBACK, RELEASES, VECTORS

log = structlog.get_logger()
POLL_MS = 500
KINDS: dict[str, Any] = {
    RELEASES: Release,
    CLUSTERS: Snapshot,
    VECTORS: Learning,
    DELIVERIES: Delivery,
    FEEDBACK: Feedback,
    EXAMPLES: Example,
}


class Tail:
    """Follows ``topics`` (names without the prefix): from the beginning, or from records at most ``topics[name]`` seconds old.

    ``done``: the offset to begin at instead, by topic (as the cluster knows it) and partition.
    """

    def __init__(self, settings: Settings, topics: Mapping[str, float | None], done: Mapping[tuple[str, int], int] | None = None) -> None:
        kafka = settings.kafka
        self._consumer = KafkaConsumer(
            **kafka_python_options(kafka),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
        )
        self._names = {kafka.topic(topic): topic for topic in topics}
        self._places = [
            TopicPartition(name, number) for name in self._names for number in sorted(self._consumer.partitions_for_topic(name) or ())
        ]
        self._consumer.assign(self._places)
        self._seek({place: topics[self._names[place.topic]] for place in self._places}, done or {})

    def _seek(self, ages: Mapping[Any, float | None], done: Mapping[tuple[str, int], int]) -> None:
        now = time.time()
        asked = {place: int((now - age) * 1000) for place, age in ages.items() if age is not None}
        found = self._consumer.offsets_for_times(asked) if asked else {}
        for place in self._places:
            if (place.topic, place.partition) in done:
                self._consumer.seek(place, done[place.topic, place.partition])
            elif place not in asked:
                self._consumer.seek_to_beginning(place)
            elif found.get(place) is not None:
                self._consumer.seek(place, found[place].offset)
            else:  # nothing so young
                self._consumer.seek_to_end(place)

    def batches(self) -> Iterator[tuple[Any, list[Any]]]:
        """Place and records of each fetch up to the topics' present ends."""
        if not self._places:
            return
        ends = self._consumer.end_offsets(self._places)
        while any(self._consumer.position(place) < ends[place] for place in self._places):
            yield from self._consumer.poll(timeout_ms=POLL_MS).items()

    def read(self, place: Any, records: list[Any]) -> Iterator[Any]:
        """What the records say. One that can't be read is said, with its place, and left out: the others go on."""
        for record in records:
            try:
                if record.value is not None:
                    yield msgspec.json.decode(record.value, type=KINDS[self._names[place.topic]])
            except UNREADABLE as error:
                log.error("record_unreadable", topic=place.topic, partition=place.partition, offset=record.offset, error=str(error))

    def new(self) -> Iterator[tuple[str, Any]]:
        """Topic (without the prefix) and content of every record up to the topics' present ends."""
        for place, records in self.batches():
            yield from ((self._names[place.topic], found) for found in self.read(place, records))

    def close(self) -> None:
        """Let go of Kafka."""
        self._consumer.close()
