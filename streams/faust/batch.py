"""The records of one fetch of one partition, and the promise that what follows from them is safe."""

from __future__ import annotations

from typing import Any, Protocol

from faust.types import ConsumerMessage


class BatchOwner(Protocol):
    """Who hears what becomes of a batch."""

    def touch(self, batch: Batch) -> None:
        """Something of it was done."""

    def finish(self, batch: Batch) -> None:
        """All of it was done: its offsets may be committed."""


class Batch:
    """The records of one fetch of one partition, as aiokafka unpacks them (key, value: bytes or None; offset; timestamp; headers)."""

    __slots__ = ("finished", "first", "highwater", "last", "message", "owner", "partition", "records", "topic")

    def __init__(self, topic: str, partition: int, records: list[Any], highwater: int) -> None:
        self.topic, self.partition, self.records, self.highwater = topic, partition, records, highwater
        self.first, self.last = records[0].offset, records[-1].offset
        self.finished = False
        self.message: ConsumerMessage | None = None
        self.owner: BatchOwner | None = None

    def touch(self) -> None:
        """Something of it was done: who waits for ``done`` must not take a long batch for a stuck one."""
        if self.owner is not None:
            self.owner.touch(self)

    def done(self) -> None:
        """Everything that follows from these records is safe: their offsets may be committed. The records go now."""
        if not self.finished:
            self.finished = True
            self.records = []  # Faust's message and this batch hold each other: thousands of records would wait for the collector
            if self.owner is not None:
                self.owner.finish(self)
