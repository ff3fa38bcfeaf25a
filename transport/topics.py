"""Make the declared topics, and say how a cluster's differ from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from schemas.config import KafkaSettings, Settings, kafka_python_options
from schemas.errors import KafkaUnavailable, TopicMismatch
from schemas.topics import TOPICS, Topic

COMING = 5.0  # seconds without a new topic after which no more are expected: `mailtide up` makes one after the other


@contextmanager
def admin(kafka: KafkaSettings) -> Iterator[Any]:
    """An admin client; KafkaUnavailable where no broker answers."""
    try:
        client = KafkaAdminClient(**kafka_python_options(kafka))
    except KafkaError as error:
        raise KafkaUnavailable(f"no Kafka answers at {kafka.bootstrap}: {error}") from error
    try:
        yield client
    finally:
        client.close()


def partitions(topic: Topic, kafka: KafkaSettings) -> int:
    """How many the declaration asks for."""
    return topic.partitions or kafka.partitions


def create(settings: Settings) -> list[str]:
    """Make what is missing; the names made. Running it twice does nothing the second time."""
    kafka = settings.kafka
    made = []
    with admin(kafka) as client:
        present = set(client.list_topics())
        for topic in TOPICS:
            name = kafka.topic(topic.name)
            if name in present:
                continue
            try:
                client.create_topics([NewTopic(name, partitions(topic, kafka), kafka.replication, topic_configs=topic.settings())])
            except TopicAlreadyExistsError:
                continue
            except KafkaError as error:
                raise TopicMismatch(f"topic {name} can't be made: {error}") from error
            made.append(name)
    return made


def wait(settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
    """Return once all declared topics are there; raises TopicMismatch, naming the missing ones, where no more of them come."""
    with admin(settings.kafka) as client:
        missing: set[str] = set()
        seen = clock()
        while left := _missing(client, settings.kafka):
            if left != missing:
                missing, seen = left, clock()
            elif clock() - seen > COMING:
                names = ", ".join(sorted(missing))
                raise TopicMismatch(f"topics are missing at {settings.kafka.bootstrap}: {names}; run `mailtide topics create`")
            time.sleep(0.1)


def _missing(client: Any, kafka: KafkaSettings) -> set[str]:
    return {kafka.topic(topic.name) for topic in TOPICS} - set(client.list_topics())


def differences(settings: Settings) -> list[str]:
    """One line for each way in which the cluster differs from the declaration; empty where it doesn't."""
    kafka = settings.kafka
    found: list[str] = []
    with admin(kafka) as client:
        present = set(client.list_topics())
        names = [kafka.topic(topic.name) for topic in TOPICS]
        counts = {row["name"]: len(row["partitions"]) for row in client.describe_topics([name for name in names if name in present])}
        for topic, name in zip(TOPICS, names, strict=True):
            if name not in present:
                found.append(f"{name}: missing; run `mailtide topics create`")
                continue
            want = partitions(topic, kafka)
            if counts[name] != want:
                found.append(f"{name}: {counts[name]} partitions, declared {want}; set kafka.partitions or add partitions")
            actual = _configuration(client, name)
            found += [
                f"{name}: {key} is {actual.get(key)}, declared {value}; alter the topic's configuration"
                for key, value in topic.settings().items()
                if actual.get(key) != value
            ]
    return found


def _configuration(client: Any, name: str) -> dict[str, str]:
    described = client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    values: dict[str, str] = {}
    _collect(described, values)
    return values


def _collect(node: Any, values: dict[str, str]) -> None:
    """kafka-python nests configuration by resource type and name, differently between versions: take every entry that has a value."""
    if isinstance(node, dict):
        for key, entry in node.items():
            if isinstance(entry, dict) and "value" in entry:
                values[str(entry.get("name", key))] = str(entry["value"])
            elif isinstance(entry, str):
                values[str(key)] = entry
            else:
                _collect(entry, values)
    elif isinstance(node, list | tuple):
        for entry in node:
            _collect(entry, values)
