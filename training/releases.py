"""The release that serves each cluster, read from and written to ``model.releases``."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from schemas.config import Settings, kafka_python_options
from schemas.release import Release, Snapshot
from schemas.topics import CLUSTERS, RELEASES


def history(settings: Settings) -> dict[str, list[Release]]:
    """Every release still on the topic, by cluster, oldest epoch first."""
    found: dict[str, list[Release]] = {}
    for value in _values(settings, RELEASES):
        release = msgspec.json.decode(value, type=Release)
        found.setdefault(release.cluster, []).append(release)
    for each in found.values():
        each.sort(key=lambda release: release.epoch)
    return found


def serving(settings: Settings) -> dict[str, Release]:
    """The newest epoch of each cluster."""
    return {cluster: releases[-1] for cluster, releases in history(settings).items()}


def snapshot(settings: Settings) -> Snapshot | None:
    """The newest published clusters; None before the first."""
    found = [msgspec.json.decode(value, type=Snapshot) for value in _values(settings, CLUSTERS)]
    return max(found, key=lambda one: one.epoch, default=None)


def publish(settings: Settings, release: Release) -> None:
    """Write the record and wait until Kafka has it."""
    producer = KafkaProducer(**kafka_python_options(settings.kafka), acks="all")
    try:
        producer.send(settings.kafka.topic(RELEASES), key=release.cluster.encode(), value=msgspec.json.encode(release)).get(30)
    finally:
        producer.close()


def _values(settings: Settings, topic: str) -> Iterable[bytes]:
    kafka = settings.kafka
    consumer = KafkaConsumer(**kafka_python_options(kafka), enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=50)
    try:
        name = kafka.topic(topic)
        places = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or ())]
        if not places:
            return
        ends = consumer.end_offsets(places)
        consumer.assign(places)
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(timeout_ms=500).values():
                yield from (record.value for record in batch if record.value is not None)
    finally:
        consumer.close()
