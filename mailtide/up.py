"""Every service on this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import msgspec
import structlog

from mailtide import broker, endpoints, outbox, topics
from mailtide.drain import Halt
from mailtide.jars import kafka_jars
from mailtide.supervisor import Supervisor
from schemas.config import Settings
from schemas.errors import MailtideError

log = structlog.get_logger()


@contextlib.contextmanager
def ground(settings: Settings, halt: Halt | None = None) -> Iterator[Settings]:
    """Kafka with its topics, and an SMTP server: settings in which both addresses stand. ``halt`` as for ``broker.running``."""
    with broker.running(settings, halt) as with_kafka:
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
def signals() -> Iterator[Halt]:
    """An event that SIGTERM and Ctrl-C set."""
    halt = Halt()

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
    if not settings.kafka.bootstrap:
        kafka_jars()  # a first run's download, which the usual signals may still end at once
    with signals() as halt:
        try:
            with ground(settings, halt) as ready:
                _serve(ready, halt)
        except MailtideError:
            if not halt.is_set():
                raise  # else it was given up because we were told to stop
    log.info("down")


def _serve(settings: Settings, halt: Halt) -> None:
    supervisor = Supervisor(settings)
    supervisor.start()
    log.info("up", kafka=settings.kafka.bootstrap, smtp=settings.smtp.url, home=settings.home, clock=settings.clock)
    try:
        while not halt.wait(0.25):
            supervisor.tick()
    finally:
        log.info("draining")
        supervisor.stop()
