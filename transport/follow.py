"""Follow small compacted topics from their beginning: published models that every worker holds whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import TopicPartition

from schemas.config import KafkaSettings
from schemas.errors import UNREADABLE
from transport.clients import reader

log = logging.getLogger(__name__)
Apply = Callable[[str, bytes], Awaitable[None] | None]


async def follow(kafka: KafkaSettings, topics: Sequence[str], apply: Apply, caught_up: asyncio.Event, once: bool = False) -> None:
    """Call ``apply(topic, value)`` for each record, one after the other, for ever; ``topics`` are names without the prefix.

    A record that can't be read (``apply`` raises one of UNREADABLE) is said with its place and left out: what it was to replace serves on.
    ``caught_up`` is set when everything that was there at the start has been applied; with ``once`` that is all.
    """
    names = {kafka.topic(topic): topic for topic in topics}
    client = await reader(kafka)
    try:
        tps = [TopicPartition(name, 0) for name in names]  # declared with one partition
        client.assign(tps)
        await client.seek_to_beginning(*tps)
        ends = await client.end_offsets(tps)
        while True:
            if not caught_up.is_set() and all([await client.position(tp) >= ends[tp] for tp in tps]):
                caught_up.set()
                if once:
                    return
            for tp, records in (await client.getmany(timeout_ms=500)).items():
                for record in records:
                    try:
                        if record.value is not None and (waiting := apply(names[tp.topic], record.value)) is not None:
                            await waiting
                    except UNREADABLE as error:
                        place = {"topic": tp.topic, "partition": tp.partition, "offset": record.offset}
                        log.error("a record can't be read and is left out: %s", error, extra=place)
    finally:
        await client.stop()
