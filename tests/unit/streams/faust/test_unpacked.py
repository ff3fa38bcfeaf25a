"""Records without ``ConsumerRecord`` around them are the same records, and the next fetch begins at the same place."""

from __future__ import annotations

from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from streams.faust.consumer import UnpackedRecords

VALUES = st.none() | st.binary(max_size=8)
HEADERS = st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2)
RECORDS = st.lists(st.tuples(VALUES, VALUES, HEADERS), min_size=1, max_size=4)
TRANSACTIONAL, CONTROL = 0x10, 0x20  # attribute bits
NOBODY = -1  # the producer id of who has none


class Step(NamedTuple):
    """What a producer does: write a batch, within a transaction where it has an id; then end the transaction or let it run on."""

    producer: int
    records: list[Any]
    end: bool | None  # committed, aborted; None: goes on


STEPS = st.lists(st.builds(Step, st.sampled_from((NOBODY, 7, 8)), RECORDS, st.sampled_from((True, False, None))), min_size=1, max_size=8)


def stored(steps: list[Step]) -> tuple[bytes, list[tuple[int, int]], set[int]]:
    """The log as a broker keeps it, its aborted transactions (producer, first offset), and the offsets of their records.

    A transaction that is open at the end is no part of what a broker sends to who reads committed: here it is taken for committed.
    """
    out, offset, aborted, void = b"", 0, list[tuple[int, int]](), set[int]()
    began: dict[int, list[int]] = {}  # of each open transaction: its records' offsets
    for step in steps:
        out += _batch(step.producer, step.records, offset, 0 if step.producer == NOBODY else TRANSACTIONAL)
        offsets = range(offset, offset := offset + len(step.records))
        if step.producer == NOBODY:
            continue
        began.setdefault(step.producer, []).extend(offsets)
        if step.end is None:
            continue
        out += _batch(step.producer, [(b"\x00\x00\x00" + bytes([step.end]), b"\x00" * 6, [])], offset, TRANSACTIONAL | CONTROL)
        offset += 1  # a marker takes one, too
        written = began.pop(step.producer)
        if not step.end:
            aborted.append((step.producer, written[0]))
            void |= set(written)
    return out, aborted, void


def _batch(producer: int, records: list[Any], offset: int, bits: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, bits & TRANSACTIONAL, producer, 0, 0, 1 << 20)
    for number, (key, value, headers) in enumerate(records):
        builder.append(number, 1000 + number, key, value, headers)
    data = bytearray(builder.build())
    data[:8] = offset.to_bytes(8, "big")
    data[22] |= bits
    return bytes(data)


def _fetched(data: bytes, since: int, aborted: list[tuple[int, int]] | None, isolation: int) -> PartitionRecords:
    return PartitionRecords(TopicPartition("t", 0), MemoryRecords(data), aborted, since, None, None, False, isolation)


def _plain(record: Any) -> tuple[Any, ...]:
    return record.offset, record.timestamp, record.timestamp_type, record.key, record.value, tuple(record.headers)


@given(STEPS, st.booleans(), st.data())
def test_they_are_what_aiokafka_gives(steps: list[Step], committed: bool, data: st.DataObject) -> None:
    raw, aborted, void = stored(steps)
    since = data.draw(st.integers(0, len(steps[0].records) - 1))  # within the first batch: a broker sends it whole
    told = (aborted, READ_COMMITTED) if committed else (None, READ_UNCOMMITTED)
    theirs, ours = _fetched(raw, since, *told), UnpackedRecords(_fetched(raw, since, *told))
    expected = [_plain(record) for record in theirs]
    assert [_plain(record) for record in ours] == expected
    assert ours.next_fetch_offset == theirs.next_fetch_offset
    assert void.isdisjoint(record[0] for record in expected) or not committed
    gone = len([offset for offset in void if offset >= since]) if committed else 0
    assert len(expected) == sum(len(step.records) for step in steps) - since - gone


def test_records_of_an_old_format_know_no_transactions() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    builder.append(0, timestamp=1000, key=b"k", value=b"v")
    ours = UnpackedRecords(_fetched(bytes(builder.build()), 0, [], READ_COMMITTED))
    assert [(record.key, record.value) for record in ours] == [(b"k", b"v")]
    assert ours.next_fetch_offset == 1
