"""One partition's batches, handed to the stage one after the other, and drained before the partition goes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from faust.types import TP

from streams.faust.batch import Batch, BatchOwner

Handler = Callable[[Batch], Awaitable[None]]
Hook = Callable[[str, int], Awaitable[None]]
log = logging.getLogger(__name__)


class QueueHost(BatchOwner, Protocol):
    """What a partition's queue needs of the app that it belongs to."""

    group: str
    buffer: int  # batches of a partition, waiting or open, from which it isn't fetched
    failed: asyncio.Future[None]
    on_assigned: Hook | None
    handle: Handler

    def forget(self, batch: Batch) -> None:
        """It isn't ours any more."""

    def pressed(self, tp: TP, full: bool) -> None:
        """The queue is full, or has room again."""

    def fail(self, error: BaseException) -> None:
        """Stop the app for good."""


class PartitionQueue:
    """One partition's batches: first the assignment hook, then one batch after the other."""

    def __init__(self, app: QueueHost, tp: TP) -> None:
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
