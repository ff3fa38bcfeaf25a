"""Every service on this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import msgspec
import structlog

from mailtide import broker, endpoints, outbox, topics
from mailtide.supervisor import Supervisor
from schemas.config import Settings

log = structlog.get_logger()


@contextlib.contextmanager
def ground(settings: Settings) -> Iterator[Settings]:
    """Kafka with its topics, and an SMTP server: settings in which both addresses stand."""
    with broker.running(settings) as with_kafka:
        topics.create(with_kafka)
        if with_kafka.smtp.url:
            yield with_kafka
            return
        server = outbox.start(with_kafka)
        url = f"smtp://127.0.0.1:{server.port}"
        endpoints.put(Path(settings.home), smtp=url)
        try:
            yield msgspec.structs.replace(with_kafka, smtp=msgspec.structs.replace(with_kafka.smtp, url=url))
        finally:
            endpoints.drop(Path(settings.home), "smtp")
            server.stop()


@contextlib.contextmanager
def signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    halt = threading.Event()

    def ask(_signum: int, _frame: FrameType | None) -> None:
        halt.set()

    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield halt
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def main(settings: Settings) -> None:
    """Block until told to stop; drain, then return."""
    with signals() as halt, ground(settings) as ready:
        supervisor = Supervisor(ready)
        supervisor.start()
        log.info("up", kafka=ready.kafka.bootstrap, smtp=ready.smtp.url, home=settings.home, clock=ready.clock)
        try:
            while not halt.wait(0.25):
                supervisor.tick()
        finally:
            log.info("draining")
            supervisor.stop()
    log.info("down")
