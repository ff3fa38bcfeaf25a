"""Intake's first step: raw records become accepted events, dead letters, or records that belong to another partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from schemas.events import Dead, Event, decode
from transport.batches import Outbox
from transport.clients import partition_of
from transport.oversized import Header, Record, cut, is_large

FORWARDED = "mailtide.forwarded"
ORIGIN = "mailtide.origin"  # "partition:offset" of the record that was forwarded: its identity where the event has none
REASON = "mailtide.reason"


@dataclass(slots=True)
class Sifted:
    """``events`` in offset order; ``counts``: read, forwarded, and each dead letter's reason as ``dead.<reason>``."""

    events: list[Event] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """One more of it."""
        self.counts[name] = self.counts.get(name, 0) + 1


@dataclass(frozen=True, slots=True)
class Places:
    """Topic names as the cluster knows them, and partition counts."""

    events: str
    dead_letters: str
    partitions: int  # of the events
    dead_partitions: int = 1


def sift(records: Sequence[Any], places: Places, partition: int, wall: float, outbox: Outbox) -> Sifted:
    """Decode aiokafka records of one partition; what can't be taken here goes to ``outbox``."""
    sifted = Sifted()
    for record in records:
        event = decode(record.value, wall, partition, record.offset, record.headers)
        if isinstance(event, Dead):
            sifted.count(f"dead.{event.reason}")
            letter, short = _buried(record, event, places, partition)
            if is_large(letter):
                outbox.add_large((letter, short), _place(record, places, partition))
            else:
                outbox.add(*letter)
            continue
        home = partition_of(event.customer.encode(), places.partitions)
        moved = _header(record.headers, FORWARDED) is not None if record.headers else False
        if home != partition and not moved:  # once: two that disagree about the number of partitions must not play ping-pong
            sifted.count("forwarded")
            origin = f"{partition}:{record.offset}".encode()
            headers = (*record.headers, (FORWARDED, b"1"), (ORIGIN, origin))
            forward = Record(places.events, home, event.customer.encode(), record.value, headers)
            if is_large(forward):
                # Compressed it came, and with its headers it may be more than the topic takes.
                dead = Dead("too_large", "with its headers it is too large for its customer's partition")
                outbox.add_large((forward, *_buried(record, dead, places, partition)), _place(record, places, partition))
            else:
                outbox.add(*forward)
            continue
        if moved and not event.message_id:
            # Forwarding may be repeated after a crash; the second one has to be recognised.
            origin = _header(record.headers, ORIGIN) or b"?"
            event = msgspec.structs.replace(event, message_id=f"{FORWARDED}:{origin.decode(errors='replace')}")
        sifted.events.append(event)
    sifted.counts["read"] = len(sifted.events)
    return sifted


def _header(headers: Sequence[Header], name: str) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None


def _place(record: Any, places: Places, partition: int) -> dict[str, Any]:
    return {"topic": places.events, "partition": partition, "offset": record.offset}


def _buried(record: Any, dead: Dead, places: Places, partition: int) -> tuple[Record, Record]:
    """The dead letter, and what to send where Kafka won't take that.

    Key, value, headers and time unchanged; Kafka Connect's names for the rest, so that its tools work. No personal data.
    """
    own = (
        ("__connect.errors.topic", places.events.encode()),
        ("__connect.errors.partition", str(partition).encode()),
        ("__connect.errors.offset", str(record.offset).encode()),
        ("__connect.errors.exception.class.name", f"mailtide.events.{dead.reason}".encode()),
        ("__connect.errors.exception.message", dead.detail.encode()),
        (REASON, dead.reason.encode()),
    )
    where = partition_of(record.key, places.dead_partitions) if record.key else 0
    whole = Record(places.dead_letters, where, record.key, record.value, record.headers, max(record.timestamp, 0))
    return whole._replace(headers=(*record.headers, *own)), cut(whole, own)
