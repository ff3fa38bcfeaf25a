"""Whether Kafka answers: told once when it stops to and once when it does again, where its client says it without end."""

from __future__ import annotations

import asyncio
import logging

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from schemas.config import KafkaSettings

MEASURE = 5.0  # seconds between two questions, and the longest wait for an answer
log = logging.getLogger(__name__)


class Outage:
    """``heard`` after each question. Nothing ends with an outage: what was begun waits, and goes on where it stood."""

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        self._where, self._place, self._away = kafka.bootstrap, {"group": group}, False

    def heard(self, answer: bool) -> None:
        """Whether the question was answered."""
        if answer and self._away:
            log.warning("Kafka answers again", extra=self._place)
        elif not answer and not self._away:
            log.error("Kafka at %s doesn't answer: waiting until it does; start it, or mend MAILTIDE_KAFKA", self._where, extra=self._place)
        self._away = not answer


async def watch(consumer: AIOKafkaConsumer, outage: Outage) -> None:
    """Ask for ever."""
    while True:
        await asyncio.sleep(MEASURE)
        try:
            async with asyncio.timeout(MEASURE):
                await consumer.end_offsets(list(consumer.assignment())[:1])
        except (TimeoutError, KafkaConnectionError, KafkaTimeoutError):
            outage.heard(False)
        except KafkaError:  # in the middle of a rebalance: says nothing
            continue
        else:
            outage.heard(True)
