"""How long from an event to the mail server, steadily and in a burst; and how long a burst of events takes."""

from __future__ import annotations

import asyncio
import collections
import os
import time
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import Row, benchmark
from benchmarks.streaming.crew import Crew, crew, identified, viewed
from schemas.config import SendingSettings
from schemas.mail import Delivery, Intent, iso
from schemas.topics import DELIVERIES, EVENTS, INTENTS
from transport.blocking import records

BURST = int(os.environ.get("BENCH_BURST", "100000"))
RATE, SECONDS = 500, 20  # events a second, and for how long
ORDERS = 25  # one event in so many is an order, which fires a mail
FIRST, MAILS = 64, 2000
TRIGGER = """\
[[trigger]]
name = "post_purchase"
on = "Order Completed"
use_by = "1 day"
re_entry = "1 second"

[sending]
holdout = 0.0
quiet_start = "00:00"
quiet_end = "00:00"
cap = 100
"""
GOODS = (("Rye Bread", "Bread", 4.0), ("Whole Milk", "Milk", 3.5), ("Ground Coffee", "Coffee", 9.0), ("Olive Oil", "Oil", 12.0))


@benchmark("burst_drain_100k")
def burst_drain(home: Path, runs: int) -> list[Row]:
    """Events that lie there when the worker is ready, until the last is applied: real triggers, one worker."""
    with crew(home / "drain", 6) as workers:
        workers.start("one", "intake,clusters")
        workers.until(lambda: len(workers.opened("one")) == 6, "the worker's partitions")
        found = []
        before = workers.cpu("one")
        for turn in range(runs):
            began = time.monotonic()
            asyncio.run(workers.publish(viewed(f"c{number % 20_000}", turn * BURST + number) for number in range(BURST)))
            workers.until(workers.applied, "the burst")
            found.append(time.monotonic() - began)
        used, memory = workers.cpu("one") - before, workers.memory("one")
        kept = workers.kept(home / "drain" / "kafka")
    spread = f"{min(found):.1f}-{max(found):.1f}; from the first one published"
    note = f"{spread}; {BURST:,} events of 20,000 customers; load {os.getloadavg()[0]:.1f}"
    topics = ", ".join(f"{name} {size / BURST / runs:.0f}" for name, size in sorted(kept.items(), key=lambda pair: -pair[1])[:5])
    return [
        Row("burst_drain_100k", float(np.median(found)), None, "s", runs, "", "lower", note),
        Row("intake_cpu", used / BURST / runs * 1e6, None, "us/event", runs, "", "lower", "one worker's CPU over the bursts, learners too"),
        Row("kafka_bytes", sum(kept.values()) / BURST / runs, None, "B/event", runs, "", "lower", f"one replica; {topics}"),
        Row("intake_memory", memory / 1e6, None, "MB", 1, "", "lower", "most at once: 6 partitions, 20,000 customers"),
    ]


def ordered(customer: str, number: int) -> tuple[str, dict[str, object]]:
    """An order of one thing, now."""
    goods, category, price = GOODS[number % len(GOODS)]
    product = {"product_id": f"p{number % len(GOODS)}", "name": goods, "category": category, "price": price, "quantity": 1}
    body = {"messageId": f"o{number}", "type": "track", "event": "Order Completed", "userId": customer, "timestamp": iso(time.time())}
    return customer, body | {"properties": {"order_id": f"o-{number}", "total": price, "currency": "USD", "products": [product]}}


async def _steadily(workers: Crew, start: int) -> None:
    """``RATE`` events a second for ``SECONDS``, in tenths of a second."""
    began, number = time.monotonic(), start
    for tick in range(SECONDS * 10):
        await asyncio.sleep(max(0.0, began + tick / 10 - time.monotonic()))
        events = []
        for _ in range(RATE // 10):
            number += 1
            events.append(ordered(f"s{number}", number) if number % ORDERS == 0 else viewed(f"v{number % 5000}", number))
        await workers.publish(events)


def _latencies(workers: Crew, since: float) -> tuple[np.ndarray, collections.Counter[str]]:
    """Seconds from Kafka's taking the order to the mail's file, of the orders since then; and where the mails' words came from."""
    kafka, kept = workers.settings.kafka, {}
    taken = {(record.partition, record.offset): record.timestamp / 1000 for record in records(kafka, EVENTS)}
    for file in (workers.home / "outbox").glob("*.eml"):
        kept[file.name.partition("@")[0]] = file.stat().st_mtime
    ends = {one.intent_id: one for one in (msgspec.json.decode(record.value, type=Delivery) for record in records(kafka, DELIVERIES))}
    found, origins = [], collections.Counter[str]()
    for record in records(kafka, INTENTS):
        intent = msgspec.json.decode(record.value, type=Intent)
        at = taken[intent.source.partition, intent.source.offset]
        if at >= since and intent.intent_id in kept:
            found.append(kept[intent.intent_id] - at)
            origins[ends[intent.intent_id].origin] += 1
    return np.array(found), origins


@benchmark("event_to_smtp")
def event_to_smtp(home: Path, _runs: int) -> list[Row]:
    """Real base model; the pool is filled by the mails of the first minutes, as a shop's own is."""
    rows = []
    with crew(home / "latency", 6, TRIGGER, sending=SendingSettings(holdout=0.0)) as workers:
        workers.start("intake", "intake,clusters")
        workers.start("mail", "writer,sender")
        workers.until(lambda: len(workers.opened("intake")) == 6 and len(workers.opened("mail", "mailtide-writer")) == 6, "the workers")
        people = [f"{kind}{number}" for kind, count in (("s", 10 + RATE * SECONDS), ("b", MAILS), ("w", FIRST)) for number in range(count)]
        people = [name for name in people if name[0] != "s" or int(name[1:]) % ORDERS == 0]
        asyncio.run(workers.publish(identified(name) for name in people))
        asyncio.run(workers.publish(ordered(f"w{number}", 9_000_000 + number) for number in range(FIRST)))
        ended, due = workers.follower.seen.outcomes, FIRST
        workers.until(lambda: len(ended) >= due, "the first mails")
        used, before = workers.cpu("mail"), due
        steadily = (RATE * SECONDS // ORDERS, lambda: _steadily(workers, 0))
        for name, (count, tell) in {"steady": steadily, "burst": (MAILS, lambda: workers.publish(_burst()))}.items():
            since = time.time() - 0.001
            asyncio.run(tell())
            due += count
            workers.until(lambda: len(ended) >= due, f"the {name} mails")  # noqa: B023
            found, origins = _latencies(workers, since)
            share = ", ".join(f"{origin} {count}" for origin, count in sorted(origins.items()))
            note = f"{len(found)} mails: {share}; load {os.getloadavg()[0]:.1f}"
            for point in (50, 99):
                goal = 60.0 if (name, point) == ("burst", 99) else None
                value = float(np.percentile(found, point))
                rows.append(Row(f"event_to_smtp_{name}_p{point}", value, goal, "s", 1, "goal" if goal else "", "lower", note))
        mails = len(ended) - before
        note = f"writer and sender of {mails} mails, real base model; most memory {workers.memory('mail') / 1e6:.0f} MB"
        rows.append(Row("mail_cpu", (workers.cpu("mail") - used) / mails * 1e3, None, "ms/mail", 1, "", "lower", note))
    return rows


def _burst() -> list[tuple[str, dict[str, object]]]:
    return [ordered(f"b{number}", 8_000_000 + number) for number in range(MAILS)]
