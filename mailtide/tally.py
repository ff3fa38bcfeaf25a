"""Counts the events again, from ``customer.events``, and compares each customer's state with them."""

from __future__ import annotations

import time
from collections import defaultdict

import msgspec

from mailtide.reading import partition_count, partition_of, records
from schemas.config import Settings
from schemas.events import Dead, decode
from schemas.topics import CUSTOMERS, EVENTS

FORWARDED = "mailtide.forwarded"


class Tally(msgspec.Struct):
    """``wrong``: (partition, what differs) of each state that can't be explained by the events."""

    events: int = 0
    compared: int = 0
    wrong: list[tuple[int, str]] = []
    unproven: list[str] = []


class _Seen(msgspec.Struct):
    """Of one customer: how many events must count, and how many may (repeated ids outside the remembered ones, clocks ahead)."""

    ids: set[int]
    least: int = 0
    most: int = 0


def tally(settings: Settings, *, proves: bool) -> Tally:
    """Promise 1. ``proves``: the events are all still there and intake has applied them all; else they are counted only."""
    found, customers = Tally(), defaultdict[str, _Seen](lambda: _Seen(set()))
    count, wall = partition_count(settings.kafka, EVENTS), time.time()
    for record in records(settings.kafka, EVENTS):
        event = decode(record.value, wall, record.partition, record.offset, record.headers)
        if isinstance(event, Dead):
            continue
        moved = any(name == FORWARDED for name, _ in record.headers)
        if partition_of(event.customer, count) != record.partition and not moved:
            continue  # its copy in the right partition counts
        found.events += 1
        seen = customers[event.customer]
        seen.most += 1
        known = hash(event.message_id or (record.partition, record.offset))
        # A forwarded record without an id may stand there twice; one ahead of its time may have been refused then.
        sure = bool(event.message_id) or not moved
        early = isinstance(decode(record.value, record.timestamp / 1000, headers=record.headers), Dead)
        if sure and not early and known not in seen.ids:
            seen.ids.add(known)
            seen.least += 1
    if not proves:
        found.unproven.append("counts: intake has not read all events, or the oldest are gone")
        return found
    states = {record.key: (record.partition, record.value) for record in records(settings.kafka, CUSTOMERS)}
    for customer, seen in customers.items():
        number, state = states.get(customer.encode(), (partition_of(customer, count), None))
        have = _counted(state, wall) if state is not None else 0
        found.compared += 1
        if not seen.least <= have <= seen.most:
            found.wrong.append((number, f"customer {customer}: the state counts {have} events, there are {seen.least} to {seen.most}"))
    return found


def _counted(state: bytes, wall: float) -> int:
    from models.passes import describe

    return sum(int(count) for count in describe(state, wall).get("counts", {}).values())
