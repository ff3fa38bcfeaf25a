"""Counts the events again, from ``customer.events``, and compares each customer's state with them."""

from __future__ import annotations

import time
from collections import defaultdict

import msgspec

from models.customer.state import RECENT, RECENT_MOST, RECENT_SECONDS
from models.triggers.passes import describe
from schemas.config import Settings
from schemas.errors import UNREADABLE, StoreError
from schemas.events import Dead, decode
from schemas.topics import CUSTOMERS, EVENTS
from transport.blocking import partition_count, partition_of, records

FORWARDED = "mailtide.forwarded"


class Recount(msgspec.Struct):
    """``wrong``: (partition, what differs) of each state that can't be explained by the events."""

    events: int = 0
    compared: int = 0
    wrong: list[tuple[int, str]] = []
    unproven: list[str] = []


class _Seen(msgspec.Struct):
    """Of one customer: how many events must count, and how many may (ids that intake may have forgotten, clocks ahead).

    ``ids``: each id with the number and the time of the event that bore it last.
    """

    ids: dict[int, tuple[int, float]]
    told: int = 0
    newest: float = 0.0
    least: int = 0
    most: int = 0


def recount(settings: Settings, *, proves: bool) -> Recount:
    """Promise 1. ``proves``: the events are all still there and intake has applied them all; else they are counted only."""
    found, customers = Recount(), defaultdict[str, _Seen](lambda: _Seen({}))
    count, wall = partition_count(settings.kafka, EVENTS), time.time()
    for record in records(settings.kafka, EVENTS):
        event = decode(record.value, wall, record.partition, record.offset, record.headers)
        if isinstance(event, Dead):
            continue
        moved = any(name == FORWARDED for name, _ in record.headers)
        if partition_of(event.customer, count) != record.partition:
            continue  # its copy in the right partition counts
        found.events += 1
        seen = customers[event.customer]
        seen.told += 1
        seen.newest = max(seen.newest, event.at)
        known = hash(event.message_id or (record.partition, record.offset))
        last = seen.ids.get(known)
        seen.ids[known] = seen.told, event.at
        seen.most += last is None or _forgotten(seen, *last)
        # A forwarded record without an id may stand there twice; one ahead of its time may have been refused then.
        sure = bool(event.message_id) or not moved
        early = isinstance(decode(record.value, record.timestamp / 1000, headers=record.headers), Dead)
        seen.least += sure and not early and last is None
    if not proves:
        found.unproven.append("counts: intake has not read all events, or the oldest are gone")
        return found
    states = {record.key: (record.partition, record.value) for record in records(settings.kafka, CUSTOMERS)}
    for customer, seen in customers.items():
        number, state = states.get(customer.encode(), (partition_of(customer, count), None))
        found.compared += 1
        try:
            have = _counted(state, wall) if state is not None else 0
        except (StoreError, *UNREADABLE):
            found.wrong.append((number, f"customer {customer}: the state can't be read"))
            continue
        if not seen.least <= have <= seen.most:
            found.wrong.append((number, f"customer {customer}: the state counts {have} events, there are {seen.least} to {seen.most}"))
    return found


def _forgotten(seen: _Seen, number: int, at: float) -> bool:
    """Whether intake need not know an id any more that came so many events and so long ago."""
    since = seen.told - number
    return since > RECENT_MOST or (since > RECENT and at <= seen.newest - RECENT_SECONDS)


def _counted(state: bytes, wall: float) -> int:
    return sum(int(count) for count in describe(state, wall)["counts"].values())
