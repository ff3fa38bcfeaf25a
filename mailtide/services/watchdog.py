"""A worker that has work and does none says so and starts itself again: a kill is survived, a silent stop is only late mail."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from prometheus_client import Counter

from mailtide.services.health import Pulse
from schemas.config import Settings
from streams.progress import WORK, Stalls, Work, work

LOOKS = 12  # in the time of one patience
RESTARTS = Counter("mailtide_worker_stuck_restarts", "times that this worker found itself without progress and started anew", ["where"])

log = structlog.get_logger()


@contextmanager
def watching(settings: Settings, worker_id: str, pulse: Pulse) -> Iterator[None]:
    """While the block runs, a thread of its own looks whether the stages and their event loop get on."""
    file = Path(settings.home) / "run" / f"stuck-{worker_id}.json"
    for where, count in _read(file).items():
        RESTARTS.labels(where).inc(count)
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(settings, file, pulse, done), name="stuck", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(settings: Settings, file: Path, pulse: Pulse, done: threading.Event) -> None:
    interval = settings.patience / LOOKS
    stalls = Stalls(settings.patience, gap=4 * interval)
    while not done.wait(interval):
        # Before the first stage is up, the loop imports and loads for seconds on end.
        found = {"event loop": Work(int(pulse.beat * 1000), True)} if WORK else {}
        stuck = stalls.look(time.monotonic(), found | work())
        if stuck:
            _again(settings, file, stuck)


def _again(settings: Settings, file: Path, stuck: dict[str, float]) -> None:
    """Does not return. What the process held is treated as after a kill: others may not wait for a drain that never ends."""
    counts = _read(file)
    for where, seconds in stuck.items():
        counts[where] = counts.get(where, 0) + 1
        log.error("worker_stuck", where=where, seconds_without_progress=round(seconds), next="starts itself again")
    file.write_text(json.dumps(counts))
    faulthandler.dump_traceback()  # where each thread stands: what to report
    sys.stderr.flush()
    if not settings.kafka.bootstrap:
        os._exit(1)  # a broker of our own goes with us; whoever started us starts us again
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command again


def _read(file: Path) -> dict[str, int]:
    try:
        return dict(json.loads(file.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
