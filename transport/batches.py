"""Records on their way to Kafka, gathered by partition: one future for thousands of records, not one for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation

from transport.oversized import Header, Record, first_taken


class ProducerBatches:
    """``add`` what is to go, then ``send``: a future for each batch, in order within each partition.

    ``large``: the producer for ``add_large``, from ``transport.oversized``; not needed without that.
    """

    def __init__(self, producer: AIOKafkaProducer, large: AIOKafkaProducer | None = None) -> None:
        self._producer, self._large = producer, large
        self._ready: dict[tuple[str, int], list[Any]] = {}
        self._tries: list[tuple[Sequence[Record], dict[str, Any]]] = []
        self.sizes: list[int] = []  # records in each batch of the last ``send``

    def __bool__(self) -> bool:
        return bool(self._ready) or bool(self._tries)

    def add(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Header] = (),
        timestamp: int | None = None,
    ) -> None:
        """One record; ``topic`` as the cluster knows it, ``timestamp`` in milliseconds where the topic keeps the producer's."""
        self._put(topic, partition, key, value, list(headers), timestamp)

    def add_large(self, tries: Sequence[Record], place: dict[str, Any]) -> None:
        """The first of these that Kafka takes; ``place`` says for the log whence it came."""
        self._tries.append((tries, place))

    def extend(self, topic: str, partition: int, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Keys and values, in order."""
        append: Callable[..., Any] = _full
        for key, value in records:
            if append(timestamp=None, key=key, value=value) is None:
                append = self._put(topic, partition, key, value, [])

    def _put(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: list[Header], timestamp: int | None = None
    ) -> Callable[..., Any]:
        """Into the last batch, or a new one where it is full; the batch's own ``append``."""
        batches = self._ready.setdefault((topic, partition), [])
        if not batches or batches[-1].append(key=key, value=value, timestamp=timestamp, headers=headers) is None:
            batches.append(self._producer.create_batch())
            if batches[-1].append(key=key, value=value, timestamp=timestamp, headers=headers) is None:
                raise ValueError(f"a record of {len(value or b'')} bytes for {topic} is larger than a batch may be")
        append: Callable[..., Any] = batches[-1].append
        return append

    async def send(self) -> list[asyncio.Future[Any]]:
        """Hand everything to the producer. Raises what ended the transaction meanwhile, where there is one: ProducerFenced, say."""
        sent: list[asyncio.Future[Any]] = []
        self.sizes = []
        ready, self._ready = self._ready, {}
        for (topic, partition), batches in ready.items():
            for batch in batches:
                self.sizes.append(batch.record_count())
                batch.close()
                try:
                    sent.append(await self._producer.send_batch(batch, topic, partition=partition))
                except IllegalOperation:
                    await acknowledged(sent)  # aiokafka tells why only to whoever waits for what it took before
                    raise
        if self._tries:
            tries, self._tries = self._tries, []
            sent.append(asyncio.ensure_future(self._send_large(tries)))
        return sent

    async def _send_large(self, several: list[tuple[Sequence[Record], dict[str, Any]]]) -> None:
        for tries, place in several:  # one after the other: each may take a lot of memory
            await first_taken(cast(AIOKafkaProducer, self._large), tries, place)


def _full(**_: Any) -> None:
    """As a batch's ``append`` without room."""


async def acknowledged(sent: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until Kafka has them all; raises what the first refused one was refused for."""
    await asyncio.gather(*sent)
