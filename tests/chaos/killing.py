"""Real workers on a real broker, killed with signal 9 at seeded moments of a replay, and what the topics say afterwards."""

from __future__ import annotations

import asyncio
import collections
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mailtide import audit, outbox
from mailtide.customers import show
from mailtide.follower import Follower
from mailtide.processes import spawn
from mailtide.settings import load
from mailtide.supervisor import SERVICES, environment
from models.passes import Pass, describe
from schemas.config import Settings, SmtpSettings
from schemas.events import Dead, decode
from schemas.mail import iso, seconds
from schemas.topics import EVENTS
from streams.kafka import partition_of, producer
from tests.tiny_model import tiny

DAY = 86400.0
START = seconds("2024-03-04T15:00:00Z")  # more than a year ago: what `customer show` says then doesn't hang on today
GOODS = (("Whole Milk", "Milk", 3.5), ("Rye Bread", "Bread", 4.0), ("Ground Coffee", "Coffee", 9.0), ("Olive Oil", "Oil", 12.0))
WORKERS = ("intake", "mail")
Told = list[tuple[str, bytes]]


def stream(seed: int, customers: int = 15, days: int = 42) -> Told:
    """(customer, event) in time order: everybody consents on the first day, looks around daily and orders now and then."""
    chance = random.Random(seed)
    found: list[tuple[float, str, dict[str, Any]]] = []
    for number in range(customers):
        name, traits = f"c{number}", {"email": f"c{number}@customers.example.com", "firstName": "Ann", "consent": {"marketing": True}}
        found.append((START + number, name, {"type": "identify", "traits": traits}))
        for day in range(days):
            at = START + day * DAY + 60 + chance.randrange(6 * 3600)
            for look in range(4):
                found.append((at + look, name, {"type": "track", "event": "Product Viewed", "properties": {"product_id": "p0"}}))
            if chance.random() < 0.2:
                kind = chance.randrange(len(GOODS))
                goods, category, price = GOODS[kind]
                product = {"product_id": f"p{kind}", "name": goods, "category": category, "price": price, "quantity": 1}
                said = {"order_id": f"o{number}-{day}", "total": price, "currency": "USD", "products": [product]}
                found.append((at + 9, name, {"type": "track", "event": "Order Completed", "properties": said}))
    found.sort(key=lambda row: row[0])
    return [
        (name, msgspec.json.encode(body | {"messageId": f"m{place}", "userId": name, "timestamp": iso(at)}))
        for place, (at, name, body) in enumerate(found)
    ]


def undisturbed(settings: Settings, told: Told) -> dict[str, dict[str, Any]]:
    """What `customer show` should say of each customer: the same events through one pass, in one go."""
    offsets: collections.Counter[int] = collections.Counter()
    events, wall = [], time.time()
    for customer, value in told:
        place = partition_of(customer.encode(), settings.kafka.partitions)
        event = decode(value, wall, place, offsets[place])
        assert not isinstance(event, Dead), event
        offsets[place] += 1
        events.append(event)
    states = Pass(load({}).trigger, settings.sending, settings.shop).run({}, events, 0.0, wall, 0).states
    return {customer: describe(state, wall) for customer, state in states.items()}


class Outcome(msgspec.Struct):
    """``twice``: mails beyond the first of an intent. ``differ``: customers whose counts or features the kills changed."""

    events: int
    intents: int
    outcomes: dict[str, int]
    triggers: set[str]
    lost: int
    twice: int
    differ: list[str]
    report: audit.Report


class Flock:
    """One intake and one mail worker, a mail server and a follower, on one home."""

    def __init__(self, settings: Settings) -> None:
        self.server = outbox.start(settings)
        self.settings = msgspec.structs.replace(
            settings, clock="event", smtp=SmtpSettings(url=f"smtp://127.0.0.1:{self.server.port}"), trigger=load({}).trigger
        )
        kafka = settings.kafka
        self.environment = environment(self.settings) | {
            "MAILTIDE_KAFKA_PREFIX": kafka.prefix,
            "MAILTIDE_KAFKA_PARTITIONS": str(kafka.partitions),
            "MAILTIDE_KAFKA_SESSION_TIMEOUT": "6",  # the broker's least: how long the dead keep their partitions
            "MAILTIDE_WRITER_BASE_MODEL": str(tiny()),
            "MAILTIDE_WRITER_THREADS": "1",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.follower = Follower(self.settings)
        self.follower.start()
        for worker in WORKERS:
            self.start(worker)

    def start(self, worker: str) -> None:
        log = Path(self.settings.home) / f"{worker}.log"
        self.processes[worker] = spawn([sys.executable, "-m", "mailtide", *SERVICES[worker]], log, env=self.environment)

    def kill(self, worker: str) -> None:
        assert self.processes[worker].poll() is None, f"{worker} ended by itself"
        self.processes[worker].kill()
        self.processes[worker].wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.follower.close()
        self.server.stop()

    async def publish(self, told: Told) -> None:
        """Returns when all are acknowledged."""
        kafka = self.settings.kafka
        out = await producer(kafka, acks="all", linger_ms=5)
        try:
            places = [partition_of(customer.encode(), kafka.partitions) for customer, _ in told]
            sent = [
                await out.send(kafka.topic(EVENTS), value, customer.encode(), place)
                for (customer, value), place in zip(told, places, strict=True)
            ]
            await asyncio.gather(*sent)
        finally:
            await out.stop()

    def progress(self, worker: str) -> int:
        seen = self.follower.seen
        return sum(seen.applied.values()) if worker == "intake" else len(seen.outcomes)

    def settled(self) -> bool:
        """Whether intake applied all that is published and every intent has its outcome."""
        return self.follower.intake_lag(self.follower.event_ends()) == 0 and self.follower.seen.open_intents == 0

    def until(self, true: Callable[[], bool], patience: float = 180.0) -> None:
        deadline = time.monotonic() + patience
        while not true():
            for worker, process in self.processes.items():
                assert process.poll() is None, f"{worker} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"nothing came of it: {self.follower.seen.applied}, open {self.follower.seen.open_intents}"
            time.sleep(0.02)


def disturbed(settings: Settings, seed: int, victims: tuple[str, ...]) -> Outcome:
    """Replay ``stream(seed)`` in equal parts; after each but the last one victim dies while it works on that part."""
    told, chance, flock = stream(seed), random.Random(seed), Flock(settings)
    try:
        part = -(-len(told) // (len(victims) + 1))
        for place, victim in enumerate((*victims, "")):
            before = flock.progress(victim) if victim else 0
            asyncio.run(flock.publish(told[place * part : (place + 1) * part]))
            if victim:
                # A part may bring no new mail: then the victim dies idle.
                flock.until(lambda victim=victim, before=before: flock.progress(victim) > before or flock.settled())  # type: ignore[misc]
                time.sleep(chance.uniform(0.0, 0.3))  # the random moment: the fault itself, no wait for anything
                flock.kill(victim)
                flock.start(victim)
        ends, seen = flock.follower.event_ends(), flock.follower.seen
        flock.until(lambda: flock.follower.intake_lag(ends) == 0 and seen.open_intents == 0)
        report = audit.audit(flock.settings)
        deadline = time.monotonic() + 20.0  # the last commits of the groups follow the last outcome
        while (report.open or any(report.lag.values())) and time.monotonic() < deadline:
            time.sleep(0.2)
            report = audit.audit(flock.settings)
        return _outcome(flock, told, report)
    finally:
        flock.close()


def _outcome(flock: Flock, told: Told, report: audit.Report) -> Outcome:
    settings, seen = flock.settings, flock.follower.seen
    differ = []
    for customer, expected in undisturbed(settings, told).items():
        found = show(settings, customer)
        differ += [
            f"{customer} {name}: {found[name]} != {expected[name]}" for name in ("counts", "features") if found[name] != expected[name]
        ]
    mails = collections.Counter(file.name.partition("@")[0] for file in (Path(settings.home) / "outbox").glob("*.eml"))
    return Outcome(
        events=len(told),
        intents=len(seen.triggers),
        outcomes=dict(collections.Counter(delivery.status for delivery in seen.outcomes.values())),
        triggers=set(seen.triggers.values()),
        lost=seen.open_intents,
        twice=sum(count - 1 for count in mails.values()),
        differ=differ,
        report=report,
    )
