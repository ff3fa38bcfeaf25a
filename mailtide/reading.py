"""Read whole topics, or one customer's part of them, from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.partitioner.default import murmur2

from schemas.config import KafkaSettings, kafka_python_options


def partition_of(customer: str, partitions: int) -> int:
    """The canonical partition: murmur2 of the id, as the Java client has it."""
    return int((murmur2(customer.encode()) & 0x7FFFFFFF) % partitions)


def records(kafka: KafkaSettings, topic: str, partition: int | None = None) -> Iterator[Any]:
    """Every committed record of a topic (or of one partition) up to its end as it is now."""
    consumer = KafkaConsumer(
        **kafka_python_options(kafka),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=50,
    )
    try:
        name = kafka.topic(topic)
        known = consumer.partitions_for_topic(name) or set()
        places = [TopicPartition(name, number) for number in sorted(known) if partition is None or number == partition]
        if not places:
            return
        ends = consumer.end_offsets(places)
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(timeout_ms=500).values():
                for record in batch:
                    if record.offset < ends[TopicPartition(record.topic, record.partition)]:
                        yield record
    finally:
        consumer.close()


def partition_count(kafka: KafkaSettings, topic: str) -> int:
    """How many partitions the cluster has for this topic; 0 where it has none."""
    consumer = KafkaConsumer(**kafka_python_options(kafka))
    try:
        return len(consumer.partitions_for_topic(kafka.topic(topic)) or ())
    finally:
        consumer.close()
