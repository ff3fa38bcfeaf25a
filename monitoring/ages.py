"""How old the records at committed offsets are, by their own timestamps: read in batches, cached, within a budget."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from monitoring.connect import options
from schemas.config import KafkaSettings

RECORDS = 256  # at most so many partitions are read in a cycle
SECONDS = 0.5  # and for no longer than that
BYTES = 1 << 16  # of one partition in one fetch; the broker sends a first batch that is larger all the same
POLL_MS = 50

Wanted = tuple[str, TopicPartition, int]  # group, partition, committed offset
Key = tuple[TopicPartition, int]


@dataclass
class Ages:
    """Keeps the timestamps of offsets that are still of interest."""

    kafka: KafkaSettings
    times: dict[Key, float] = field(default_factory=dict)  # seconds since the epoch
    _asked: dict[tuple[str, TopicPartition], float] = field(default_factory=dict)  # monotonic seconds of the last try
    _consumer: Any = None

    def of(self, wanted: Iterable[Wanted]) -> dict[Key, float]:
        """Times of the records at these offsets, as far as they are known by now. Raises KafkaError."""
        asked = list(wanted)
        keys = {(place, offset) for _, place, offset in asked}
        self.times = {key: at for key, at in self.times.items() if key in keys}
        present = {(group, place) for group, place, _ in asked}
        self._asked = {key: at for key, at in self._asked.items() if key in present}
        missing = [one for one in asked if (one[1], one[2]) not in self.times]
        if missing:
            self._read(self._next(missing))
        return self.times

    def _next(self, missing: list[Wanted]) -> dict[TopicPartition, int]:
        """Whoever has waited longest; a partition that two groups ask about is read for one of them at a time."""
        chosen: dict[TopicPartition, int] = {}
        for group, place, offset in sorted(missing, key=lambda one: self._asked.get(one[:2], 0.0)):
            if place not in chosen:
                chosen[place] = offset
                self._asked[group, place] = time.monotonic()
                if len(chosen) == RECORDS:
                    break
        return chosen

    def _read(self, chosen: dict[TopicPartition, int]) -> None:
        if self._consumer is None:
            self._consumer = KafkaConsumer(
                **options(self.kafka), enable_auto_commit=False, max_partition_fetch_bytes=BYTES, fetch_max_wait_ms=POLL_MS
            )
        consumer = self._consumer
        consumer.assign(list(chosen))
        consumer.resume(*chosen)  # assign keeps what an earlier round paused
        for place, offset in chosen.items():
            consumer.seek(place, offset)
        waiting, deadline = set(chosen), time.monotonic() + SECONDS
        while waiting and time.monotonic() < deadline:
            for place, records in consumer.poll(timeout_ms=POLL_MS, max_records=1 << 20).items():
                if place in waiting and records:
                    self.times[place, chosen[place]] = records[0].timestamp / 1000
                    waiting.discard(place)
                    consumer.pause(place)

    def close(self) -> None:
        """Close the consumer; what is known stays."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
