"""Ten thousand intents whose prompts the draft pool knows already: through the real writer and sender to a mail server."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks import Row, benchmark
from benchmarks.streaming.crew import Crew, crew, identified
from schemas.config import SendingSettings
from schemas.mail import Facts, Intent, Product, Source, encode, intent_id, iso
from schemas.topics import EVENTS, INTENTS
from transport.batches import ProducerBatches
from transport.clients import partition_of, producer

MAILS, PARTITIONS, LIMIT = int(os.environ.get("BENCH_POOL_MAILS", "10000")), 6, 60.0
WARMING = 48  # customers for each kind of goods
QUIET = 4.0  # seconds in which the writer finishes nothing: its pool is full
CONFIG = """\
[[trigger]]
name = "post_purchase"
on = "Order Completed"
use_by = "1 day"

[writer]
fresh_share = 0.0

[sending]
holdout = 0.0
quiet_start = "00:00"
quiet_end = "00:00"
"""
GOODS = (("Rye Bread", "Bread", "bakery"), ("Whole Milk", "Milk", "dairy"), ("Ground Coffee", "Coffee", "coffee_tea"))


def intent(customer: str, number: int) -> Intent:
    """As intake writes it for an order of one thing."""
    name, category, goods = GOODS[number % len(GOODS)]
    now = time.time()
    facts = Facts((Product(f"p{number % len(GOODS)}", name, category, 4.0, "USD", goods),), {"order_id": f"o-{number}"}, ("single_item",))
    return Intent(
        intent_id=intent_id(customer, "post_purchase", str(number)),
        customer=customer,
        trigger="post_purchase",
        occurrence=str(number),
        due=iso(now),
        expires=iso(now + 86400.0),
        cluster="c0",
        facts=facts,
        source=Source(EVENTS, 0, 0),
        fired=iso(now),
        tone="warm",
    )


async def publish(workers: Crew, intents: Iterable[Intent]) -> None:
    """As fast as Kafka takes them."""
    kafka = workers.settings.kafka
    client = await producer(kafka, linger_ms=5)
    box = ProducerBatches(client)
    for made in intents:
        key = made.customer.encode()
        box.add(kafka.topic(INTENTS), partition_of(key, kafka.partitions), key, encode(made))
    await asyncio.gather(*await box.send())
    await client.stop()


def written(workers: Crew) -> int:
    """Mails that the model has written so far, from the counters that the writer leaves."""
    return sum(json.loads(file.read_text())["mails"] for file in (workers.home / "run").glob("writer-*.json"))


def warm(workers: Crew) -> int:
    """Fill the pool as a shop's first mails and idle minutes do; how many mails that took the model."""
    count = WARMING * len(GOODS)
    asyncio.run(publish(workers, (intent(f"w{number}", number) for number in range(count))))
    workers.until(lambda: len(workers.follower.seen.outcomes) >= count, "the first mails")
    last, since = -1, time.monotonic()
    while time.monotonic() - since < QUIET:
        if (now := written(workers)) != last:
            last, since = now, time.monotonic()
        time.sleep(0.2)
    return last


@benchmark("pool_burst")
def pool_burst(home: Path, runs: int) -> list[Row]:
    """Seconds until each intent has its outcome and the server each mail; the peer is the limit that was set."""
    seconds, notes = [], ""
    with crew(home / "burst", PARTITIONS, CONFIG, sending=SendingSettings(holdout=0.0)) as workers:
        for stage in ("intake", "writer", "sender"):
            workers.start(stage, stage)
        workers.until(lambda: len(workers.opened("writer", "mailtide-writer")) == PARTITIONS, "the writer")
        workers.until(lambda: len(workers.opened("sender", "mailtide-sender")) == PARTITIONS, "the sender")
        people = [f"w{number}" for number in range(WARMING * len(GOODS))]
        people += [f"b{turn}-{number}" for turn in range(runs) for number in range(MAILS)]
        asyncio.run(workers.publish(identified(name) for name in people))
        workers.until(workers.applied, "the customers")
        modelled = warm(workers)
        for turn in range(runs):
            before = set(workers.follower.seen.outcomes)
            intents = [intent(f"b{turn}-{number}", 1_000_000 * (turn + 1) + number) for number in range(MAILS)]
            began = time.monotonic()
            asyncio.run(publish(workers, intents))
            workers.until(lambda: len(workers.follower.seen.outcomes) >= len(before) + MAILS, "the burst")  # noqa: B023
            seconds.append(time.monotonic() - began)
            ends = [one for key, one in workers.follower.seen.outcomes.items() if key not in before]
            counts = collections.Counter(one.origin if one.status == "sent" else one.reason or one.status for one in ends)
            notes = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    seconds.sort()
    spread = f"{MAILS:,} intents, {seconds[0]:.0f}-{seconds[-1]:.0f} s: {notes}"
    note = f"{spread}; the model wrote {modelled} drafts for the pool; load {os.getloadavg()[0]:.1f}"
    return [Row("pool_burst", seconds[len(seconds) // 2], LIMIT, "s", runs, "the limit", "lower", note)]
