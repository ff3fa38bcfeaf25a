"""The tone bandit's lessons, counted anew from the store of examples: no repeat counts twice, and who objected is out of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec
from kafka import KafkaProducer

from models.learning.tone import ToneBandit
from schemas.config import Settings, kafka_python_options
from schemas.learning import ToneChances
from schemas.mail import iso
from schemas.topics import TONES
from training.feedback.examples import ExampleRow
from training.feedback.reward import WORTH

SETTLED = 86400.0  # seconds after which a mail without an answer counts as one that failed
ENOUGH = 20  # answers more than last time that make a publication worth while


def lessons(rows: Mapping[str, Sequence[ExampleRow]], fixed: frozenset[str] = frozenset()) -> ToneBandit:
    """What all settled mails say of their tones. ``fixed``: triggers whose tone nobody chose."""
    bandit = ToneBandit()
    newest = max((row.sent for found in rows.values() for row in found), default=0.0)
    for cluster, found in rows.items():
        for row in found:
            success = row.reward >= WORTH["clicked"]
            if row.tone and row.trigger not in fixed and (success or row.sent <= newest - SETTLED):
                bandit.learn(cluster, row.tone, success)
    return bandit


class Tones:
    """Publishes ``model.tones`` for each cluster that has enough new answers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fixed = frozenset(trigger.name for trigger in settings.trigger if trigger.tone)
        self._told: dict[str, int] = {}

    def publish(self, rows: Mapping[str, Sequence[ExampleRow]]) -> list[ToneChances]:
        """What was published, acknowledged."""
        bandit, made = lessons(rows, self.fixed), []
        for cluster in rows:
            answers = sum(good + bad for good, bad in bandit.counts.get(cluster, {}).values())
            if abs(answers - self._told.get(cluster, 0)) >= ENOUGH:
                made.append(ToneChances(cluster, bandit.chances(cluster), answers, iso(time.time())))
        if made:
            self._send(made)
        self._told |= {one.cluster: one.answers for one in made}
        return made

    def _send(self, made: Sequence[ToneChances]) -> None:
        kafka = self.settings.kafka
        producer = KafkaProducer(**kafka_python_options(kafka), acks="all")
        try:
            for one in made:
                producer.send(kafka.topic(TONES), msgspec.json.encode(one), key=one.cluster.encode()).get(30)
        finally:
            producer.close()
