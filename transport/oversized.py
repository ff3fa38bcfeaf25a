"""Records that their topic may refuse for their size: sent one by one, compressed, with something smaller ready instead.

A shop's compressed batch of 2 MiB may hold a value of many; where Mailtide
writes that again, no limit is certain to let it through. The producer for it
must not be idempotent: such a one counts what was refused, and everything
after that would be out of order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from schemas.config import KafkaSettings
from schemas.topics import LARGEST_DEAD_LETTER
from transport.clients import BATCH_BYTES, producer

Header = tuple[str, bytes]
CUT_BYTES = 1 << 16  # of the key, of the value and of the headers, where the whole can't be kept
CUT = "mailtide.cut"  # how many bytes the whole had
_OVERHEAD = 1 << 12  # of a batch and its lengths, generously

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """``topic`` as the cluster knows it; ``timestamp`` in milliseconds where the topic keeps the producer's."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header] = ()
    timestamp: int | None = None


def size(key: bytes | None, value: bytes | None, headers: Sequence[Header]) -> int:
    """Bytes that its producer gave."""
    return len(key or b"") + len(value or b"") + sum(len(name.encode()) + len(content or b"") for name, content in headers)


def is_large(record: Record) -> bool:
    """Whether it needs the care of this module: with the others in a batch it would be more than a batch should be."""
    return size(record.key, record.value, record.headers) > BATCH_BYTES - _OVERHEAD


def cut(record: Record, own: Sequence[Header]) -> Record:
    """What is kept of a dead letter that Kafka won't take whole: the beginning, ``own`` headers, and how large it was."""
    theirs = record.headers if size(None, None, record.headers) <= CUT_BYTES else ()
    whole = (CUT, str(size(record.key, record.value, record.headers)).encode())
    return record._replace(
        key=record.key and record.key[:CUT_BYTES], value=record.value and record.value[:CUT_BYTES], headers=(*theirs, *own, whole)
    )


async def open_producer(kafka: KafkaSettings) -> AIOKafkaProducer:
    """The producer that ``first_taken`` wants; KafkaUnavailable where no broker answers."""
    return await producer(kafka, enable_idempotence=False, acks="all", compression_type="gzip")


async def first_taken(client: AIOKafkaProducer, tries: Sequence[Record], place: dict[str, Any]) -> None:
    """Send the first of these that Kafka takes, and say in the log where it isn't the first. ``place``: whence it came.

    Raises what Kafka failed for, and the refusal of the last.
    """
    for number, record in enumerate(tries, 1):
        try:
            await _send(client, record)
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            if number == len(tries):
                raise
        else:
            if number > 1:
                log.warning("too large for %s, sent to %s %s", tries[0].topic, record.topic, _how(record), extra=place)
            return


def _how(record: Record) -> str:
    return "cut" if any(name == CUT for name, _ in record.headers) else "whole"


async def _send(client: AIOKafkaProducer, record: Record) -> None:
    batch = client.create_batch()
    # The producer would compress it in the event loop, which a hundred megabytes hold up for seconds.
    await asyncio.to_thread(_fill, batch, record)
    if batch.size() > LARGEST_DEAD_LETTER:
        raise MessageSizeTooLargeError  # a request too large for the broker's socket would end the connection, not the record
    await (await client.send_batch(batch, record.topic, partition=record.partition))


def _fill(batch: Any, record: Record) -> None:
    batch.append(key=record.key, value=record.value, timestamp=record.timestamp, headers=list(record.headers))
    batch._build()
