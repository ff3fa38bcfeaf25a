"""Intake's states on this machine: one RocksDB a partition, and the way back from the changelog topic.

States and the place in the changelog are written in one batch, so they can't
disagree; what a killed process did not write is read again from the changelog.
"""

from __future__ import annotations

import logging
import shutil
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rocksdict
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.config import KafkaSettings
from schemas.errors import LostState, StoreError
from schemas.topics import CUSTOMERS
from transport.clients import reader

log = logging.getLogger(__name__)

CLOCK = b"\xffclock"  # no customer's key: no UTF-8 text has this byte
_CHANGELOG = b"\xffchangelog"
_CACHE_BYTES = 8 << 20  # RocksDB's own default through Faust is 2 GiB a partition
_WRITE_BUFFER = 16 << 20
_CLOCK = struct.Struct("<qd")
_OFFSET = struct.Struct("<q")


class Clock(NamedTuple):
    """How far a partition has been applied: the next offset of ``customer.events``, and the largest event time (seconds)."""

    offset: int = 0
    event_time: float = 0.0

    def packed(self) -> bytes:
        """16 bytes, as the changelog carries them under ``CLOCK``."""
        return _CLOCK.pack(self.offset, self.event_time)

    @staticmethod
    def unpacked(value: bytes) -> Clock:
        """The inverse of ``packed``."""
        return Clock(*_CLOCK.unpack(value))


class Store:
    """One partition's states: customer -> bytes. Everything raises StoreError, in one line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._db = rocksdict.Rdict(str(path), options=_options())
        except Exception as error:
            raise _error(path, error) from error

    def get(self, customer: str) -> bytes | None:
        """The customer's state; None where there is none."""
        try:
            return self._db.get(customer.encode())
        except Exception as error:
            raise _error(self.path, error) from error

    def get_many(self, customers: list[str]) -> dict[str, bytes]:
        """The states there are."""
        try:
            found = self._db.get([customer.encode() for customer in customers])
        except Exception as error:
            raise _error(self.path, error) from error
        return {customer: state for customer, state in zip(customers, found, strict=True) if state is not None}

    @property
    def clock(self) -> Clock:
        """How far this partition has been applied."""
        value = self._db.get(CLOCK)
        return Clock.unpacked(value) if value else Clock()

    @property
    def changelog(self) -> int:
        """The changelog's next offset that is not in here yet."""
        value = self._db.get(_CHANGELOG)
        return int(_OFFSET.unpack(value)[0]) if value else 0

    def write(self, records: dict[bytes, bytes | None], changelog: int) -> None:
        """States (None deletes), the clock under ``CLOCK`` and the changelog's next offset, all or nothing."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in records.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(_CHANGELOG, _OFFSET.pack(changelog))
        try:
            self._db.write(batch)
        except Exception as error:
            raise _error(self.path, error) from error

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Every customer and state, in the keys' order."""
        for key, value in self._db.items():
            if not key.startswith(b"\xff"):
                yield key.decode(), value

    def close(self) -> None:
        """Let go of the files. What a full disk keeps from being written stands in the changelog."""
        try:
            self._db.close()
        except Exception as error:
            log.warning("%s", _error(self.path, error))

    def wiped(self) -> Store:
        """The same place, empty."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        return Store(self.path)


def _options() -> rocksdict.Options:
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(_CACHE_BYTES))
    table.set_bloom_filter(10.0, False)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(_WRITE_BUFFER)
    options.set_max_write_buffer_number(2)
    options.set_keep_log_file_num(2)
    options.set_max_open_files(128)
    return options


def _error(path: Path, error: Exception) -> StoreError:
    why = " ".join(str(error).split())
    mend = "free some space" if "space" in why.lower() else "see that the folder is writable and no other worker uses it"
    return StoreError(f"the state in {path} can't be used: {why}; {mend}")


async def recover(store: Store, kafka: KafkaSettings, partition: int, applied: Callable[[bytes], int], committed: int) -> Store:
    """Apply what the changelog has and the store has not; returns the store (another one where it had to start anew).

    Of two records of a customer the one that had ``applied`` more events wins,
    so that a worker that was replaced without knowing can't bring back old states.
    ``committed``: the group's offset. A commit follows the changelog's clock, so one ahead of it
    means that states were lost: LostState then, and what lies here is left as it is.
    """
    tp = TopicPartition(kafka.topic(CUSTOMERS), partition)
    client = await reader(kafka, max_partition_fetch_bytes=4 << 20, isolation_level="read_committed")
    try:
        client.assign([tp])
        end = (await client.end_offsets([tp]))[tp]
        begin = (await client.beginning_offsets([tp]))[tp]
        if store.changelog > end:  # the topic was made anew: what lies here belongs to another past
            _whole(await _clock(client, tp, begin, end), committed, tp, end)
            store = store.wiped()
        async for found, position in _read(client, tp, max(store.changelog, begin), end):
            records: dict[bytes, bytes | None] = {}
            for record in found:
                _merge(records, store, record.key, record.value, applied)
            if records or position >= end:
                store.write(records, position)
        _whole(store.clock, committed, tp, end)
    finally:
        await client.stop()
    return store


def _whole(clock: Clock, committed: int, tp: TopicPartition, end: int) -> None:
    if committed > clock.offset:
        raise LostState(
            f"topic {tp.topic} partition {tp.partition} ends at {end} and knows events up to offset {clock.offset}, "
            f"but the group has committed {committed}: it was made anew or has lost records, or somebody set the offset ahead"
        )


async def _read(client: AIOKafkaConsumer, tp: TopicPartition, position: int, end: int) -> AsyncIterator[tuple[Sequence[Any], int]]:
    """The records from ``position`` to ``end``, fetch by fetch, each with the offset after it."""
    client.seek(tp, position)
    while position < end:
        found = await client.getmany(tp, timeout_ms=500)
        position = await client.position(tp)
        yield found.get(tp, ()), position


async def _clock(client: AIOKafkaConsumer, tp: TopicPartition, begin: int, end: int) -> Clock:
    """What the changelog alone has applied."""
    clocks = [Clock()]
    async for found, _ in _read(client, tp, begin, end):
        clocks += [Clock.unpacked(record.value) for record in found if record.key == CLOCK and record.value]
    return max(clocks)


def _merge(records: dict[bytes, bytes | None], store: Store, key: bytes, value: bytes | None, applied: Callable[[bytes], int]) -> None:
    if key == CLOCK:
        seen = Clock.unpacked(value) if value else Clock()
        held = records.get(CLOCK)
        before = Clock.unpacked(held) if held else store.clock
        records[CLOCK] = Clock(max(seen.offset, before.offset), max(seen.event_time, before.event_time)).packed()
        return
    before_state = records[key] if key in records else store.get(key.decode())
    if value is None or before_state is None or applied(value) >= applied(before_state):
        records[key] = value
