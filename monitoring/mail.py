"""Lag in the words of mail: what waits at each stage, how old it is, and what will be too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition

from schemas.config import Settings, kafka_python_options
from schemas.mail import Delivery, Draft, Intent, seconds
from schemas.topics import DELIVERIES, DRAFTS, INTENTS

RATE_WINDOW = 60.0  # seconds of outcomes that "the present rate" is taken from


@dataclass(frozen=True, slots=True)
class Waiting:
    """One trigger's intents without an outcome. ``will_expire`` counts those that end after their use-by at the present rate."""

    trigger: str
    at_writer: int
    at_sender: int
    oldest_seconds: float
    will_expire: int


@dataclass(slots=True)
class _Open:
    trigger: str
    priority: int
    fired: float
    patience: float  # seconds between due and expires
    drafted: bool = False


def waiting(open_intents: Iterable[_Open], rate: float, now: float) -> list[Waiting]:
    """The table, by trigger. ``rate``: outcomes a second. Lanes are served by priority, then age."""
    found: dict[str, list[float]] = {}
    line = sorted(open_intents, key=lambda one: (one.priority, one.fired))
    for place, one in enumerate(line, 1):
        counts = found.setdefault(one.trigger, [0, 0, 0.0, 0])
        counts[one.drafted] += 1
        counts[2] = max(counts[2], now - one.fired)
        done_in = place / rate if rate > 0 else float("inf")
        counts[3] += now - one.fired + done_in > one.patience
    return [Waiting(name, int(c[0]), int(c[1]), c[2], int(c[3])) for name, c in sorted(found.items())]


@dataclass
class MailFollower:
    """Follows intents, drafts and deliveries; holds only what is open."""

    settings: Settings
    open: dict[str, _Open] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)  # outcomes read before their intent: topics are read side by side
    _outcomes: deque[float] = field(default_factory=deque)
    _consumer: Any = None

    def look(self, now: float, budget: int = 200) -> list[Waiting]:
        """Read what is new (at most ``budget`` polls) and tell what waits."""
        if self._consumer is None:
            self._consumer = self._subscribe()
        for _ in range(budget):
            batches = self._consumer.poll(timeout_ms=50)
            if not batches:
                break
            for place, batch in batches.items():
                for record in batch:
                    if record.value is not None:
                        self._note(place.topic, record.value, record.timestamp / 1000)
        while self._outcomes and self._outcomes[0] < now - RATE_WINDOW:
            self._outcomes.popleft()
        return waiting(self.open.values(), len(self._outcomes) / RATE_WINDOW, now)

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _subscribe(self) -> Any:
        kafka = self.settings.kafka
        consumer = KafkaConsumer(
            **kafka_python_options(kafka), enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        names = [kafka.topic(name) for name in (INTENTS, DRAFTS, DELIVERIES)]
        consumer.assign([TopicPartition(name, number) for name in names for number in consumer.partitions_for_topic(name) or ()])
        return consumer

    def _note(self, topic: str, value: bytes, at: float) -> None:
        kafka = self.settings.kafka
        if topic == kafka.topic(INTENTS):
            intent = msgspec.json.decode(value, type=Intent)
            if intent.intent_id in self._ended:
                self._ended.discard(intent.intent_id)
                return
            patience = seconds(intent.expires) - seconds(intent.due)
            self.open.setdefault(intent.intent_id, _Open(intent.trigger, intent.priority, seconds(intent.fired), patience))
        elif topic == kafka.topic(DRAFTS):
            draft = msgspec.json.decode(value, type=Draft)
            known = self.open.get(draft.intent.intent_id)
            if known is not None:
                known.drafted = True
        else:
            delivery = msgspec.json.decode(value, type=Delivery)
            self._outcomes.append(at)
            if self.open.pop(delivery.intent_id, None) is None:
                self._ended.add(delivery.intent_id)
