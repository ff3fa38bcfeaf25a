"""Read whole topics, as they are or as they grow, or one customer's part of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any, TypeVar

import msgspec
import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.partitioner.default import murmur2

from schemas.config import KafkaSettings, Settings, kafka_python_options
from schemas.errors import UNREADABLE

log = structlog.get_logger()
T = TypeVar("T")

# From the first committed record on, and without leaving a trace of the reading.
WHOLE: dict[str, Any] = {
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",
    "fetch_max_wait_ms": 50,
}


def partition_of(customer: str, partitions: int) -> int:
    """The canonical partition: murmur2 of the id, as the Java client has it."""
    return int((murmur2(customer.encode()) & 0x7FFFFFFF) % partitions)


def records(kafka: KafkaSettings, topic: str, partition: int | None = None) -> Generator[Any, None, None]:
    """Every committed record of a topic (or of one partition) up to its end as it is now."""
    consumer = KafkaConsumer(**kafka_python_options(kafka), **WHOLE)
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


def decoded(kafka: KafkaSettings, topic: str, kind: type[T], partition: int | None = None, key: bytes | None = None) -> Iterator[T]:
    """``records`` of this key (of all without one) as ``kind``; what can't be read is passed over, and the log names its place."""
    decode = msgspec.json.Decoder(kind).decode
    # Closed at once, however its reader ends: a client that is left open keeps the process alive.
    with contextlib.closing(records(kafka, topic, partition)) as found:
        for record in found:
            if record.value is None or (key is not None and record.key != key):
                continue
            try:
                value = decode(record.value)
            except UNREADABLE as error:
                place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
                log.warning("a record that can't be read", error=str(error), **place)
                continue
            yield value


def following(settings: Settings, names: Collection[str], halt: threading.Event, take: Callable[[str, Any], None]) -> None:
    """Give every record of these topics that has a value to ``take``, with its topic's plain name, from the beginning until ``halt``.

    What ``take`` can't read is passed over: `mailtide audit` names it.
    """
    kafka = settings.kafka
    consumer = KafkaConsumer(**kafka_python_options(kafka), **WHOLE)
    plain = {kafka.topic(name): name for name in names}
    try:
        # A topic that was made just now may not be known yet; left out, its records would be missed for good.
        while not all(consumer.partitions_for_topic(name) for name in plain) and not halt.wait(0.1):
            pass
        consumer.assign([TopicPartition(name, number) for name in plain for number in consumer.partitions_for_topic(name) or ()])
        while not halt.is_set():
            for batch in consumer.poll(timeout_ms=100).values():
                for record in batch:
                    if record.value is not None:
                        with contextlib.suppress(*UNREADABLE):
                            take(plain[record.topic], record)
    finally:
        consumer.close()


def partition_count(kafka: KafkaSettings, topic: str) -> int:
    """How many partitions the cluster has for this topic; 0 where it has none."""
    consumer = KafkaConsumer(**kafka_python_options(kafka))
    try:
        return len(consumer.partitions_for_topic(kafka.topic(topic)) or ())
    finally:
        consumer.close()
