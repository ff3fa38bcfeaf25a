"""One partition's claims and outcomes, through the transactional producer that its next owner fences."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import IllegalOperation

from transport.batches import acknowledged

Record = tuple[str, bytes, bytes]  # topic as the cluster knows it, key, value


class GroupCommit:
    """What is written while a transaction is under way shares the next one: group commit, as databases do it.

    ``producer``: transactional and started. It is asked for one transaction at a time. ``linger``: seconds that a transaction
    waits for company; one costs the broker five writes, however much is in it.
    """

    def __init__(self, producer: Any, partition: int) -> None:
        self.producer, self.partition, self.linger = producer, partition, 0.0
        self._lock = asyncio.Lock()
        self._next: list[Record] = []
        self._turn: asyncio.Future[None] | None = None

    async def write(self, records: Sequence[Record]) -> None:
        """Committed when it returns. Raises KafkaError where another worker has fenced this one: to all who met in the transaction.

        Whoever is cancelled meanwhile leaves the transaction to go on: others' records are in it.
        """
        self._next.extend(records)
        if self._turn is None:
            self._turn = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._commit(self._turn))
        else:
            await asyncio.shield(self._turn)

    async def _commit(self, turn: asyncio.Future[None]) -> None:
        if self.linger:
            await asyncio.sleep(self.linger)
        async with self._lock:
            records, self._next, self._turn = self._next, [], None
            try:
                await self._transact(records)
            except BaseException as error:
                turn.set_exception(error)
                turn.exception()  # perhaps nobody else waits
                raise
            turn.set_result(None)

    async def _transact(self, records: Sequence[Record]) -> None:
        sent: list[asyncio.Future[Any]] = []
        try:
            async with self.producer.transaction():
                for topic, key, value in records:
                    sent.append(await self.producer.send(topic, value, key, self.partition))
        except IllegalOperation:
            await acknowledged(sent)  # aiokafka tells why only to whoever waits for what it took before
            raise
