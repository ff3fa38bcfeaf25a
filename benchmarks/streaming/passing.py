"""What one event costs the pass itself (features, triggers, the state's codec), without Kafka and RocksDB; no peer.

Two rows: page views of customers who have a year behind them, and the panel's year as it comes (orders of some
nine lines), timers included. Events are decoded beforehand; batches are intake's. CPU time of one process.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import msgspec

from benchmarks import Row, benchmark
from mailtide.replay.sources import complete_journey
from mailtide.settings import load
from models.customer.state import sizes
from models.triggers.passes import Pass
from schemas.events import Dead, Event, decode
from streams.intake.schedule import Schedule
from streams.intake.stage import CHUNK

CUSTOMERS = 400
PLAIN = 20_000
WALL = 4e9  # later than anything in the panel


def panel() -> list[Event]:
    """The year of ``CUSTOMERS`` households in time order."""
    found = []
    for offset, dated in enumerate(complete_journey.events(None, CUSTOMERS)):
        event = decode(msgspec.json.encode(dated.event), WALL, 0, offset)
        if not isinstance(event, Dead):
            found.append(event)
    return found


class PassingWorld:
    """States and timers in memory, driven as intake drives them."""

    def __init__(self) -> None:
        settings = load({})
        self.passing = Pass(settings.trigger, settings.sending, settings.shop)
        self.states: dict[str, bytes] = {}
        self.schedule = Schedule()
        self.fired = 0

    def apply(self, events: list[Event]) -> None:
        """One chunk, then what came due by its end."""
        now = events[-1].at
        held = {event.customer: self.states[event.customer] for event in events if event.customer in self.states}
        self._keep(self.passing.run(held, events, now, now, 0))
        while due := self.schedule.due(now, CHUNK):
            self.fired += len(due)
            self._keep(self.passing.fire({customer: self.states[customer] for customer in due}, now, now, 0))

    def _keep(self, result: object) -> None:
        self.states.update(result.states)  # type: ignore[attr-defined]
        for customer, at in result.timers.items():  # type: ignore[attr-defined]
            self.schedule.set(customer, at)


def timed(world: PassingWorld, events: list[Event]) -> float:
    """CPU microseconds an event."""
    began = time.process_time()
    for start in range(0, len(events), CHUNK):
        world.apply(events[start : start + CHUNK])
    return (time.process_time() - began) / len(events) * 1e6


def views(world: PassingWorld, after: list[Event]) -> list[Event]:
    """Page views of everybody, some seconds apart."""
    who, last = sorted(world.states), after[-1]
    return [
        msgspec.structs.replace(
            last,
            customer=who[n % len(who)],
            kind="Product Viewed",
            at=last.at + n * 0.1,
            message_id=f"v-{n}",
            offset=last.offset + 1 + n,
            properties=msgspec.convert(
                {"product_id": "p-1", "name": "Rye bread", "category": "Bakery", "price": 2.5}, type(last.properties)
            ),
        )
        for n in range(PLAIN)
    ]


@benchmark("pass")
def passing(home: Path, runs: int) -> list[Row]:
    events = panel()
    mixed, plain = [], []
    for _ in range(runs):
        world = PassingWorld()
        mixed.append(timed(world, events))
        plain.append(timed(world, views(world, events)))
    measured = sorted(sizes(state).features for state in world.states.values())
    ids = sorted(sizes(state).total for state in world.states.values())
    note = (
        f"median; {len(events):,} events of {CUSTOMERS} households; range {min(mixed):.1f}-{max(mixed):.1f}; timers fired {world.fired:,}"
    )
    return [
        Row("pass_mix", statistics.median(mixed), None, "us/event", runs, better="lower", note=note),
        Row(
            "pass_plain",
            statistics.median(plain),
            None,
            "us/event",
            runs,
            better="lower",
            note=f"median; range {min(plain):.1f}-{max(plain):.1f}",
        ),
        Row(
            "state_features",
            _quantile(measured, 0.5),
            None,
            "bytes",
            1,
            better="lower",
            note=f"median; p99 {_quantile(measured, 0.99):,.0f}",
        ),
        Row(
            "state_whole",
            _quantile(ids, 0.5),
            None,
            "bytes",
            1,
            better="lower",
            note=f"median; p99 {_quantile(ids, 0.99):,.0f}; with message ids and open intents",
        ),
    ]


def _quantile(ascending: list[int], share: float) -> float:
    return float(ascending[min(len(ascending) - 1, int(share * len(ascending)))])
