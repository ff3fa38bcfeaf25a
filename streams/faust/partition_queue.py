"""One partition's batches, handed to the stage one after the other, and drained before the partition goes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from faust.types import TP, ConsumerMessage

if TYPE_CHECKING:
    from streams.faust.app import BatchApp

log = logging.getLogger(__name__)


class Batch:
    """The records of one fetch of one partition, as aiokafka unpacks them (key, value: bytes or None; offset; timestamp; headers)."""

    __slots__ = ("_app", "finished", "first", "highwater", "last", "message", "partition", "records", "topic")

    def __init__(self, topic: str, partition: int, records: list[Any], highwater: int) -> None:
        self.topic, self.partition, self.records, self.highwater = topic, partition, records, highwater
        self.first, self.last = records[0].offset, records[-1].offset
        self.finished = False
        self.message: ConsumerMessage | None = None
        self._app: BatchApp | None = None

    def touch(self) -> None:
        """Something of it was done: who waits for ``done`` must not take a long batch for a stuck one."""
        if self._app is not None and (lane := self._app.lanes.get(TP(self.topic, self.partition))) is not None:
            lane.figure += 1

    def done(self) -> None:
        """Everything that follows from these records is safe: their offsets may be committed. The records go now."""
        if not self.finished:
            self.finished = True
            self.records = []  # Faust's message and this batch hold each other: thousands of records would wait for the collector
            if self._app is not None:
                self._app.finish(self)


class Lane:
    """One partition's batches: first the assignment hook, then one batch after the other."""

    def __init__(self, app: BatchApp, tp: TP) -> None:
        self.app, self.tp = app, tp
        self.waiting: deque[Batch] = deque()
        self.open: set[Batch] = set()  # handed to the handler and not done
        self.wake, self.idle = asyncio.Event(), asyncio.Event()
        self.idle.set()
        self.draining = self.full = self.ready = self.behind = False
        self.figure = self.committed = self.next = 0  # what was done; the broker's word; the offset after the last batch done
        self.place = {"group": app.group, "topic": tp.topic, "partition": tp.partition}
        self.task = asyncio.ensure_future(self._run())

    def put(self, batch: Batch) -> None:
        self.waiting.append(batch)
        self.wake.set()
        self._pressure()

    def close(self, batch: Batch) -> None:
        self.open.discard(batch)
        self.figure += 1
        self.next = max(self.next, batch.last + 1)
        if not self.open:
            self.idle.set()
        self._pressure()

    def drop(self) -> None:
        """Forget what has not begun; it is going to be read again."""
        while self.waiting:
            self.app.forget(self.waiting.popleft())
        self._pressure()

    async def drain(self, grace: float) -> None:
        """Begin nothing more and wait for what runs; what outlasts ``grace`` is given up."""
        self.draining = True
        self.drop()
        idle = asyncio.ensure_future(self.idle.wait())
        watched: list[asyncio.Future[Any]] = [idle, self.app.failed]
        await asyncio.wait(watched, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        self.task.cancel()
        await asyncio.wait({self.task})
        for batch in self.open:
            self.app.forget(batch)

    def _pressure(self) -> None:
        full = len(self.waiting) + len(self.open) >= self.app.buffer
        if full != self.full and not self.draining:
            self.full = full
            self.app.pressed(self.tp, full)

    async def _run(self) -> None:
        try:
            if self.app.on_assigned is not None:
                await self.app.on_assigned(self.tp.topic, self.tp.partition)
            self.ready = True
            log.info("partition open", extra=self.place)
            while True:
                while not self.waiting:
                    self.wake.clear()
                    await self.wake.wait()
                batch = self.waiting.popleft()
                self.open.add(batch)
                self.idle.clear()
                await self.app.handle(batch)
        except Exception as error:
            self.app.fail(error)
