"""How far a topic goes, without asking the broker for each mail."""

from __future__ import annotations

import time

from aiokafka import AIOKafkaConsumer, TopicPartition

KEPT = 0.25  # seconds for which an end is believed


class EndOffsets:
    """``topic``: its name on the cluster."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str) -> None:
        self._consumer, self._topic = consumer, topic
        self._known: dict[int, tuple[float, int]] = {}

    async def of(self, number: int) -> int:
        """The end of a partition, at most KEPT old; -1 where it holds no record."""
        asked, end = self._known.get(number, (0.0, -1))
        if time.monotonic() - asked > KEPT:
            asked, place = time.monotonic(), TopicPartition(self._topic, number)
            end = (await self._consumer.end_offsets([place]))[place]
            if end == (await self._consumer.beginning_offsets([place]))[place]:
                end = -1
            self._known[number] = asked, end
        return end
