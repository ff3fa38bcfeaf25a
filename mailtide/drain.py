"""The last resort: what has not ended soon after SIGTERM or a failure is cut off. Kills are survived; a supervisor's patience is not."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

SECONDS = 9.0  # the supervisor, Docker and Kubernetes kill after 10, 10 and 30

log = structlog.get_logger()


@contextmanager
def deadline(halt: threading.Event, service: str, seconds: float = SECONDS, code: int = 0) -> Iterator[None]:
    """Ends the process with ``code`` if the block is still running ``seconds`` after ``halt`` was set."""
    done = threading.Event()

    def watch() -> None:
        halt.wait()
        if not done.wait(seconds):
            log.warning("drain_cut_short", service=service, seconds=seconds, note="what was not finished is done again after the start")
            sys.stderr.flush()
            os._exit(code)

    threading.Thread(target=watch, name="drain", daemon=True).start()
    try:
        yield
    finally:
        done.set()
