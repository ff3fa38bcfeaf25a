"""The intake workload on ``streams.intake.stage``, with a pass that does the peers' work: ``python -m benchmarks.peers.ours_intake …``.

Prints one JSON line: ``seconds`` from the first record to the last commit, ``rss`` bytes at most.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
import sys
import time
from resource import RUSAGE_SELF, getrusage
from types import SimpleNamespace
from typing import Any

import msgspec

from mailtide.process import garbage_collection
from schemas.config import KafkaSettings, Settings
from schemas.mail import Facts, Intent, Source, iso
from streams.intake.stage import Intake, run

WIDTH = 24  # floats of a customer's state
FORM = struct.Struct(f"<{WIDTH}dq")  # and the offset last applied


class Floats:
    """Decay and add, as the peers do; an intent for 1 event in 10."""

    def __init__(self) -> None:
        self.began: float | None = None

    def update(self, topic: str, value: bytes) -> None:
        return

    def run(self, states: dict[str, bytes], events: Any, now: float, wall: float, partition: int) -> Any:
        self.began = self.began or time.perf_counter()
        work: dict[str, bytes] = {}
        intents: list[Intent] = []
        for event in events:
            packed = work.get(event.customer) or states.get(event.customer)
            old = FORM.unpack(packed) if packed else (0.0,) * WIDTH + (-1,)
            if event.offset <= old[-1]:
                continue
            total = event.properties.total
            work[event.customer] = FORM.pack(*[value * 0.98 + total for value in old[:-1]], event.offset)
            if int(event.message_id) % 10 == 0:
                intents.append(_intent(event, partition))
        timers = dict.fromkeys(work, math.inf)
        return SimpleNamespace(states=work, timers=timers, intents=intents, gate=[], learning=[], feedback=[], identifies=[], counts={})

    def fire(self, *_: Any) -> Any:
        raise AssertionError("no timer is set")


def _intent(event: Any, partition: int) -> Intent:
    due = iso(event.at)
    return Intent(
        intent_id=event.message_id, customer=event.customer, trigger="post_purchase", occurrence=event.message_id, due=due, expires=due,
        fired=due,
        cluster="c0", facts=Facts(), source=Source("customer.events", partition, event.offset),
    )  # fmt: skip


async def measure(settings: Settings, count: int) -> float:
    passing = Floats()
    intake = Intake(settings, "w0", passing, lambda _: math.inf, lambda state: FORM.unpack(state)[-1])
    stop = asyncio.Event()
    serving = asyncio.create_task(run(intake, stop))
    while not serving.done() and sum(part.safe.offset for part in intake.parts.values()) < count:
        await asyncio.sleep(0.01)
    stop.set()
    await serving  # leaves the group, with a last commit
    if intake.counts["read"] != count:
        raise RuntimeError(f"{intake.counts['read']} of {count} events were applied")
    return time.perf_counter() - (passing.began or 0.0)


def main() -> None:
    bootstrap, prefix, partitions, count, home = sys.argv[1:]
    garbage_collection.settle()  # as a worker does
    kafka = KafkaSettings(bootstrap=bootstrap, prefix=prefix, partitions=int(partitions))
    seconds = asyncio.run(measure(msgspec.structs.replace(Settings(), home=home, kafka=kafka), int(count)))
    sys.__stdout__.write(json.dumps({"seconds": seconds, "events": int(count), "rss": 1024 * getrusage(RUSAGE_SELF).ru_maxrss}) + "\n")


if __name__ == "__main__":
    main()
