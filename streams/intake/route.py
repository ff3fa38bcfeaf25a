"""Intake's first step: raw records become accepted events, dead letters, or records that belong to another partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from schemas.events import Dead, Event, decode
from transport.batches import ProducerBatches
from transport.clients import partition_of
from transport.oversized import Header, Record, cut, is_large

FORWARDED = "mailtide.forwarded"  # how often the record was moved, for the bound alone: anybody may write it, so it decides nothing else
MOST_MOVES = 3  # two workers that disagree about the number of partitions must not move a record to and fro for ever
ORIGIN = "mailtide.origin"  # "partition:offset" of the record that was forwarded: its identity where the event has none
REASON = "mailtide.reason"


@dataclass(slots=True)
class Routed:
    """``events`` in offset order; ``counts``: read, forwarded, and each dead letter's reason as ``dead.<reason>``."""

    events: list[Event] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """One more of it."""
        self.counts[name] = self.counts.get(name, 0) + 1


@dataclass(frozen=True, slots=True)
class Topology:
    """Topic names as the cluster knows them, and partition counts."""

    events: str
    dead_letters: str
    partitions: int  # of the events
    dead_partitions: int = 1


def route(records: Sequence[Any], places: Topology, partition: int, wall: float, outbox: ProducerBatches) -> Routed:
    """Decode aiokafka records of one partition; what can't be taken here goes to ``outbox``."""
    sifted = Routed()
    for record in records:
        event = decode(record.value, wall, partition, record.offset, record.headers)
        if isinstance(event, Dead):
            _set_aside(record, event, places, partition, sifted, outbox)
            continue
        home = partition_of(event.customer.encode(), places.partitions)
        moves = _moves(record.headers) if record.headers else 0
        if home != partition and moves >= MOST_MOVES:
            astray = Dead("unsupported_format", f"moved {moves} times: the workers disagree about the number of partitions")
            _set_aside(record, astray, places, partition, sifted, outbox)
            continue
        if home != partition:
            sifted.count("forwarded")
            origin = _header(record.headers, ORIGIN) or f"{partition}:{record.offset}".encode()
            theirs = [header for header in record.headers if header[0] not in (FORWARDED, ORIGIN)]
            headers = (*theirs, (FORWARDED, str(moves + 1).encode()), (ORIGIN, origin))
            forward = Record(places.events, home, event.customer.encode(), record.value, headers)
            if is_large(forward):
                # Compressed it came, and with its headers it may be more than the topic takes.
                dead = Dead("too_large", "with its headers it is too large for its customer's partition")
                outbox.add_large((forward, *_buried(record, dead, places, partition)), _place(record, places, partition))
            else:
                outbox.add(*forward)
            continue
        if moves and not event.message_id:
            # Forwarding may be repeated after a crash; the second one has to be recognised.
            origin = _header(record.headers, ORIGIN) or b"?"
            event = msgspec.structs.replace(event, message_id=f"{FORWARDED}:{origin.decode(errors='replace')}")
        sifted.events.append(event)
    sifted.counts["read"] = len(sifted.events)
    return sifted


def _set_aside(record: Any, dead: Dead, places: Topology, partition: int, sifted: Routed, outbox: ProducerBatches) -> None:
    """The record to the dead letters, and counted."""
    sifted.count(f"dead.{dead.reason}")
    letter, short = _buried(record, dead, places, partition)
    if is_large(letter):
        outbox.add_large((letter, short), _place(record, places, partition))
    else:
        outbox.add(*letter)


def _moves(headers: Sequence[Header]) -> int:
    """How often the record says that it was moved; 0 where it says nothing that we write."""
    moves = _header(headers, FORWARDED) or b""
    return int(moves) if moves.isdigit() and len(moves) < 4 else 0


def _header(headers: Sequence[Header], name: str) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None


def _place(record: Any, places: Topology, partition: int) -> dict[str, Any]:
    return {"topic": places.events, "partition": partition, "offset": record.offset}


def _buried(record: Any, dead: Dead, places: Topology, partition: int) -> tuple[Record, Record]:
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
