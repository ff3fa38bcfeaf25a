"""The last resort: what has not ended soon after SIGTERM or a failure is cut off. Kills are survived; a supervisor's patience is not."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

SECONDS = 8.0  # the supervisor kills after 8.5, Docker and Kubernetes after 10 and 30
WHOLE = 9.0  # seconds that all of `mailtide up` has, its services and then its broker, so that it is gone before Docker kills

log = structlog.get_logger()


class Halt(threading.Event):
    """Knows when it was set first, so that what ends one after the other keeps to one limit."""

    since = 0.0  # monotonic seconds; 0 before

    def set(self) -> None:
        """Tell all to end."""
        self.since = self.since or time.monotonic()
        super().set()

    def left(self, seconds: float) -> float:
        """Of so many seconds since then, what is left; never below 0, and all of them before."""
        return max(0.0, self.since + seconds - time.monotonic()) if self.since else seconds


@contextmanager
def deadline(halt: threading.Event, service: str, seconds: float = SECONDS, code: int = 0, last: Callable[[], str] = str) -> Iterator[None]:
    """Ends the process with ``code`` if the block is still running ``seconds`` after ``halt`` was set; ``last`` is what it says last."""
    done = threading.Event()

    def watch() -> None:
        halt.wait()
        if not done.wait(seconds):
            log.warning("drain_cut_short", service=service, seconds=seconds, note="what was not finished is done again after the start")
            sys.stderr.write(last())
            sys.stderr.flush()
            os._exit(code)

    threading.Thread(target=watch, name="drain", daemon=True).start()
    try:
        yield
    finally:
        done.set()
