"""Intake writes intents within its transactions: only the committed ones are drafted, and no marker is left behind as lag."""

from __future__ import annotations

import asyncio

from aiokafka import TopicPartition

from schemas.config import Settings
from schemas.mail import Intent, encode
from schemas.topics import INTENTS
from streams.writer.stage import GROUP
from tests.broker.writer.test_writer_stage import Reader, intent, pytestmark, serving, tiny_settings
from transport.clients import producer, reader

__all__ = ["pytestmark", "tiny_settings"]


async def test_an_aborted_intent_is_never_drafted_and_lag_falls_to_nought(tiny_settings: Settings) -> None:
    topic = tiny_settings.kafka.topic(INTENTS)
    client = await producer(tiny_settings.kafka, transactional_id=f"{tiny_settings.kafka.prefix}intake")

    async def write(one: Intent) -> None:
        await client.send_and_wait(topic, encode(one), one.customer.encode(), partition=0)

    await client.begin_transaction()
    await write(intent(1))
    await client.abort_transaction()
    await client.begin_transaction()
    await write(intent(2))
    await client.commit_transaction()
    await client.stop()
    async with serving(tiny_settings), Reader(tiny_settings) as drafts:
        assert [draft.intent.intent_id for draft in await drafts.until(lambda made: len(made) >= 1)] == ["i2"]
        member = await reader(tiny_settings.kafka, group_id=tiny_settings.kafka.topic(GROUP))
        try:
            async with asyncio.timeout(60):
                while await member.committed(TopicPartition(topic, 0)) != 4:  # two records, each with a marker behind it
                    await asyncio.sleep(0.05)
        finally:
            await member.stop()
