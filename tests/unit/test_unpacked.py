"""Records without ``ConsumerRecord`` around them are the same records, and the next fetch begins at the same place."""

from __future__ import annotations

from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from streams.consumer import Unpacked

VALUES = st.none() | st.binary(max_size=8)
HEADERS = st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2)
BATCHES = st.lists(st.lists(st.tuples(VALUES, VALUES, HEADERS), min_size=1, max_size=4), min_size=1, max_size=4)
CONTROL = 0x20  # attribute bit of a transaction's marker


def stored(batches: list[list[Any]], markers: bool) -> bytes:
    """Batches as a broker keeps them: each begins where the last one ended, and a marker takes an offset, too."""
    out, offset = b"", 0
    for records in batches:
        builder = DefaultRecordBatchBuilder(2, 0, 1, -1, -1, 0, 1 << 20)
        for number, (key, value, headers) in enumerate(records):
            builder.append(number, 1000 + number, key, value, headers)
        out += _at(bytes(builder.build()), offset)
        offset += len(records)
        if markers:
            marker = DefaultRecordBatchBuilder(2, 0, 1, 7, 0, 0, 1 << 20)
            marker.append(0, 1000, b"\x00\x00\x00\x01", b"\x00\x00\x00\x00\x00\x00", [])
            data = bytearray(_at(bytes(marker.build()), offset))
            data[22] |= CONTROL
            out += bytes(data)
            offset += 1
    return out


def _at(batch: bytes, offset: int) -> bytes:
    return offset.to_bytes(8, "big") + batch[8:]


def _fetched(data: bytes, since: int) -> PartitionRecords:
    return PartitionRecords(TopicPartition("t", 0), MemoryRecords(data), [], since, None, None, False, READ_UNCOMMITTED)


def _plain(record: Any) -> tuple[Any, ...]:
    return record.offset, record.timestamp, record.timestamp_type, record.key, record.value, tuple(record.headers)


@given(BATCHES, st.booleans(), st.data())
def test_they_are_what_aiokafka_gives(batches: list[list[Any]], markers: bool, data: st.DataObject) -> None:
    raw = stored(batches, markers)
    since = data.draw(st.integers(0, len(batches[0]) - 1))  # within the first batch: a broker sends it whole
    theirs, ours = _fetched(raw, since), Unpacked(_fetched(raw, since))
    expected = [_plain(record) for record in theirs]
    assert [_plain(record) for record in ours] == expected
    assert ours.next_fetch_offset == theirs.next_fetch_offset
    assert len(expected) == sum(map(len, batches)) - since
