"""Kafka topics read as they grow, without a group: each ``new`` gives what came since the last."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from schemas.config import Settings, kafka_python_options

POLL_MS = 500


class Tail:
    """Follows ``topics`` (names without the prefix): from the beginning, or from records at most ``since[topic]`` seconds old."""

    def __init__(self, settings: Settings, topics: Mapping[str, float | None]) -> None:
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
        self._seek({place: topics[self._names[place.topic]] for place in self._places})

    def _seek(self, ages: Mapping[Any, float | None]) -> None:
        now = time.time()
        asked = {place: int((now - age) * 1000) for place, age in ages.items() if age is not None}
        found = self._consumer.offsets_for_times(asked) if asked else {}
        for place in self._places:
            if place not in asked:
                self._consumer.seek_to_beginning(place)
            elif found.get(place) is not None:
                self._consumer.seek(place, found[place].offset)
            else:  # nothing so young
                self._consumer.seek_to_end(place)

    def new(self) -> Iterator[tuple[str, bytes]]:
        """Topic and value of every record up to the topics' present ends."""
        if not self._places:
            return
        ends = self._consumer.end_offsets(self._places)
        while any(self._consumer.position(place) < ends[place] for place in self._places):
            for place, batch in self._consumer.poll(timeout_ms=POLL_MS).items():
                yield from ((self._names[place.topic], record.value) for record in batch if record.value is not None)

    def close(self) -> None:
        self._consumer.close()
