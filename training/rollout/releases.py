"""The release that serves each cluster, read from and written to ``model.releases``."""

from __future__ import annotations

import msgspec
from kafka import KafkaProducer

from schemas.config import Settings, kafka_python_options
from schemas.release import Release
from schemas.topics import RELEASES
from transport.tail import Tail


def history(settings: Settings) -> dict[str, list[Release]]:
    """Every release still on the topic, by cluster, oldest epoch first; what can't be read is said and left out."""
    tail = Tail(settings, {RELEASES: None})
    found: dict[str, list[Release]] = {}
    try:
        for _, release in tail.new():
            found.setdefault(release.cluster, []).append(release)
    finally:
        tail.close()
    for each in found.values():
        each.sort(key=lambda release: release.epoch)
    return found


def serving(settings: Settings) -> dict[str, Release]:
    """The newest epoch of each cluster."""
    return {cluster: releases[-1] for cluster, releases in history(settings).items()}


def publish(settings: Settings, release: Release) -> None:
    """Write the record and wait until Kafka has it."""
    producer = KafkaProducer(**kafka_python_options(settings.kafka), acks="all")
    try:
        producer.send(settings.kafka.topic(RELEASES), key=release.cluster.encode(), value=msgspec.json.encode(release)).get(30)
    finally:
        producer.close()
