"""Which clusters are this trainer's: those whose key falls on a partition of ``training.examples`` that its group gave it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError
from kafka.partitioner import murmur2

from schemas.config import Settings, kafka_python_options
from schemas.errors import TopicMismatch
from schemas.topics import EXAMPLES

GROUP = "mailtide-trainer"
PATIENCE_MS = 15 * 60 * 1000  # longest time between two polls: an evaluation on a crowded machine takes minutes
BEAT_MS = 50  # with none at all kafka-python returns before it takes up what the group was given, every time


class Membership:
    """One member of the group. ``beat`` often: a rebalance happens only then. Raises TopicMismatch where the topic is missing."""

    def __init__(self, settings: Settings) -> None:
        kafka = settings.kafka
        self._topic = kafka.topic(EXAMPLES)
        self._consumer = KafkaConsumer(
            **kafka_python_options(kafka),
            group_id=kafka.topic(GROUP),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=PATIENCE_MS,
            session_timeout_ms=int(kafka.session_timeout * 1000),
            heartbeat_interval_ms=max(1000, int(kafka.session_timeout * 300)),
        )
        self._partitions = len(self._consumer.partitions_for_topic(self._topic) or ())
        if not self._partitions:
            self._consumer.close()
            raise TopicMismatch(f"topic {self._topic} isn't there: run `mailtide topics create` first")
        self._consumer.subscribe([self._topic])

    def beat(self) -> None:
        """Stay a member, and learn what is ours. The records themselves are read elsewhere."""
        self._consumer.poll(timeout_ms=BEAT_MS, max_records=1)
        self._consumer.pause(*self._consumer.assignment())

    @property
    def joined(self) -> bool:
        """Kafka has told us what is ours."""
        return bool(self._consumer.assignment())

    def owns(self, cluster: str) -> bool:
        """Whether the cluster is this trainer's now."""
        number = (murmur2(cluster.encode()) & 0x7FFFFFFF) % self._partitions
        return TopicPartition(self._topic, number) in self._consumer.assignment()

    def read(self, done: Mapping[tuple[str, int], int]) -> None:
        """Commit how far the local store has read (next offset by topic and partition), so that the monitor knows the lag."""
        offsets: dict[Any, Any] = {
            place: OffsetAndMetadata(done[place.topic, place.partition], "", -1)
            for place in self._consumer.assignment()
            if (place.topic, place.partition) in done
        }
        try:
            if offsets:
                self._consumer.commit(offsets)
        except KafkaError:  # the group is rebalancing: the next round says it
            return

    def close(self) -> None:
        """Leave the group, so that others take over at once."""
        self._consumer.close()
