"""A pass that only counts, so that intake's promises can be tested without the models; also a worker to be killed.

State: ``{"n": events, "sum": of totals, "offset": last applied, "ids": recent message ids, "timer": next}``.
"""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from models.triggers.passes import Result
from schemas.config import Settings
from schemas.events import Event
from schemas.mail import Facts, Intent, Source, Standing, intent_id, iso
from streams.intake.stage import Intake, run

DELAY = 3600.0  # seconds from an order to its timer


class CountingPass:
    def __init__(self) -> None:
        self.updates: list[tuple[str, bytes]] = []

    def update(self, topic: str, value: bytes) -> None:
        self.updates.append((topic, value))

    def run(self, states: dict[str, bytes], events: Sequence[Event], now: float, wall: float, partition: int) -> Result:
        result, work = Result(), {customer: json.loads(state) for customer, state in states.items()}
        for event in events:
            state = work.setdefault(event.customer, {"n": 0, "sum": 0.0, "offset": -1, "ids": [], "timer": None})
            if event.offset <= state["offset"]:
                continue
            state["offset"] = event.offset
            if event.message_id and event.message_id in state["ids"]:
                result.counts["repeats"] = result.counts.get("repeats", 0) + 1
            else:
                state["ids"] = [*state["ids"], event.message_id][-64:]
                state["n"] += 1
                state["sum"] += event.properties.total or 0.0
                if event.kind == "Order Completed":
                    state["timer"] = event.at + DELAY
                elif event.kind == "Unsubscribed":
                    state["timer"] = None
                if event.traits is not None:
                    result.identifies.append((event.customer, event.traits, event.at))
                    result.gate.append(Standing(event.customer, True, "email" in event.traits))
            self._keep(result, event.customer, state)
        return result

    def fire(self, states: dict[str, bytes], now: float, wall: float, partition: int) -> Result:
        result = Result()
        for customer, encoded in states.items():
            state = json.loads(encoded)
            due = state["timer"]
            if due is not None and due <= now:
                source = Source("customer.events", partition, state["offset"])
                key = intent_id(customer, "test", iso(due))
                result.intents.append(Intent(key, customer, "test", iso(due), iso(due), iso(due + 60), "c0", Facts(), source, iso(wall)))
                state["timer"] = None
            self._keep(result, customer, state)
        return result

    @staticmethod
    def _keep(result: Result, customer: str, state: dict[str, Any]) -> None:
        result.states[customer] = json.dumps(state).encode()
        result.timers[customer] = math.inf if state["timer"] is None else state["timer"]


def next_timer(state: bytes) -> float:
    timer = json.loads(state)["timer"]
    return math.inf if timer is None else float(timer)


def applied_offset(state: bytes) -> int:
    return int(json.loads(state)["offset"])


def intake(settings: Settings, worker: str = "w0") -> Intake:
    return Intake(settings, worker, CountingPass(), next_timer, applied_offset)


async def main(settings: Settings, worker: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run(intake(settings, worker), stop)


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Settings), sys.argv[2]))
