"""What was sent becomes what the trainer learns from: the prompt and the words with their slots, never filled."""

from __future__ import annotations

import asyncio

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from models.prompt import prompt_of, render
from schemas.config import KafkaSettings
from schemas.mail import Draft, Example, encode
from schemas.release import Snapshot
from schemas.topics import CLUSTERS, EXAMPLES
from streams.kafka import reader


class Examples:
    """Follows ``model.clusters`` for the descriptions that stand in the prompts."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.kafka = kafka
        self.descriptions: dict[str, str] = {}
        self._epoch = -1
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow."""
        self._consumer = await reader(self.kafka, fetch_max_wait_ms=500)
        self._consumer.assign([TopicPartition(self.kafka.topic(CLUSTERS), 0)])
        await self._consumer.seek_to_beginning()
        self._task = asyncio.create_task(self._follow(self._consumer))

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._consumer is not None:
            await self._consumer.stop()

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        decode = msgspec.json.Decoder(Snapshot).decode
        async for record in consumer:
            if record.value is None:
                continue
            snapshot = decode(record.value)
            if snapshot.epoch >= self._epoch:
                self._epoch = snapshot.epoch
                self.descriptions = {cluster.id: cluster.description for cluster in snapshot.clusters}

    async def put(self, outbox: AIOKafkaProducer, draft: Draft, sent: str) -> None:
        """Publish the example of a mail that was sent; returns once it is on its way."""
        intent = draft.intent
        example = Example(
            intent_id=intent.intent_id,
            cluster=intent.cluster,
            trigger=intent.trigger,
            prompt=render(prompt_of(intent, self.descriptions.get(intent.cluster, ""))),
            text=draft.text,
            choices=draft.choices,
            release=draft.release,
            origin=draft.origin,
            tone=intent.tone,
            sent=sent,
            customer=intent.customer,
        )
        await outbox.send(self.kafka.topic(EXAMPLES), encode(example), intent.cluster.encode())
