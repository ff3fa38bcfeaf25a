"""``/health/live``, ``/health/ready`` and ``/metrics`` of a worker or the trainer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import REGISTRY

from mailtide.local import endpoints
from monitoring.http import Probe, listen
from schemas.config import Settings

PULSE = 1.0  # seconds between two beats of the event loop
DEAD = 30.0  # seconds without one after which the process isn't alive

Checks = Callable[[], Mapping[str, bool]]


class Pulse:
    """Whether an event loop still turns, for whoever asks from another thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.beat = clock, clock()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self.beat = self.clock()
            await asyncio.sleep(PULSE)

    def checks(self) -> dict[str, bool]:
        """For ``/health/live``."""
        return {"loop": self.clock() - self.beat < DEAD}


@contextmanager
def serving(settings: Settings, name: str, live: Checks, ready: Checks) -> Iterator[Probe]:
    """Listen on ``health_port`` (0, or taken: a free one) and write the address into endpoints.json under ``name``."""
    probe = listen(settings.listen_host, settings.health_port, name, REGISTRY, live, ready)
    try:
        with endpoints.listed(Path(settings.home), name, probe.url):
            yield probe
    finally:
        probe.close()
