"""Watches a run from the topics: what fired, what became of it, how far intake has read."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition

from schemas.config import Settings, kafka_python_options
from schemas.mail import Delivery, GateRecord, Intent, Watermark
from schemas.release import Release, Snapshot
from schemas.topics import CLUSTERS, DEAD_LETTERS, DELIVERIES, EVENTS, GATE, INTENTS, RELEASES
from transport.blocking import following

FOLLOWED = (INTENTS, DELIVERIES, GATE, CLUSTERS, RELEASES, DEAD_LETTERS)


@dataclass
class Seen:
    """The facts of a run so far; written by the follower's thread, read by anyone."""

    triggers: dict[str, str] = field(default_factory=dict)  # intent id -> trigger
    outcomes: dict[str, Delivery] = field(default_factory=dict)  # intent id -> its outcome
    applied: dict[int, int] = field(default_factory=dict)  # partition of customer.events -> offset below which all is applied
    releases: list[Release] = field(default_factory=list)
    snapshot: Snapshot | None = None
    dead_letters: int = 0

    @property
    def open_intents(self) -> int:
        """Intents without an outcome."""
        return len(self.triggers.keys() - self.outcomes.keys())

    def by_trigger(self) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """Numbers of intents, and of outcomes ("sent", or the reason), by trigger."""
        intents = Counter(self.triggers.values())
        outcomes: dict[str, Counter[str]] = {}
        for delivery in list(self.outcomes.values()):
            outcomes.setdefault(delivery.trigger, Counter())[delivery.reason or delivery.status] += 1
        return dict(sorted(intents.items())), {trigger: dict(sorted(counts.items())) for trigger, counts in sorted(outcomes.items())}

    def taught(self) -> int:
        """Sent mails of the cluster that has most: a refit learns from them."""
        sent = Counter(mail.cluster for mail in list(self.outcomes.values()) if mail.status == "sent" and mail.cluster)
        return max(sent.values(), default=0)

    def origin_share(self, origin: str) -> float:
        """Share of the sent mails whose words came from there ("generated", "pool", "template")."""
        sent = [delivery for delivery in list(self.outcomes.values()) if delivery.status == "sent"]
        return sum(delivery.origin == origin for delivery in sent) / len(sent) if sent else 0.0


class Follower:
    """Reads the public topics from their beginning in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seen = Seen()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._ends: Any = KafkaConsumer(**kafka_python_options(settings.kafka), enable_auto_commit=False)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and both consumers."""
        self._halt.set()
        self._thread.join(10)
        self._ends.close()

    def event_ends(self) -> dict[int, int]:
        """The end offset of each partition of customer.events."""
        name = self.settings.kafka.topic(EVENTS)
        places = [TopicPartition(name, number) for number in self._ends.partitions_for_topic(name) or ()]
        return {place.partition: end for place, end in self._ends.end_offsets(places).items()}

    def intake_lag(self, ends: dict[int, int]) -> int:
        """Events below ``ends`` that intake has not applied."""
        return sum(max(0, end - self.seen.applied.get(partition, 0)) for partition, end in ends.items())

    def _follow(self) -> None:
        following(self.settings, FOLLOWED, self._halt, self._note)

    def _note(self, topic: str, record: Any) -> None:
        if topic == INTENTS:
            intent = msgspec.json.decode(record.value, type=Intent)
            self.seen.triggers[intent.intent_id] = intent.trigger
        elif topic == DELIVERIES:
            delivery = msgspec.json.decode(record.value, type=Delivery)
            self.seen.outcomes.setdefault(delivery.intent_id, delivery)
        elif topic == GATE:
            told = msgspec.json.decode(record.value, type=GateRecord)
            if isinstance(told, Watermark):
                self.seen.applied[record.partition] = max(told.offset, self.seen.applied.get(record.partition, 0))
        elif topic == CLUSTERS:
            snapshot = msgspec.json.decode(record.value, type=Snapshot)
            if self.seen.snapshot is None or snapshot.epoch >= self.seen.snapshot.epoch:
                self.seen.snapshot = snapshot
        elif topic == RELEASES:
            self.seen.releases.append(msgspec.json.decode(record.value, type=Release))
        else:
            self.seen.dead_letters += 1
