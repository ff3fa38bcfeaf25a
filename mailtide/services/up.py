"""Every service on this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import msgspec
import structlog

from mailtide.local import broker, endpoints, mail_server
from mailtide.local.jars import kafka_jars
from mailtide.process.shutdown import Halt
from mailtide.services.supervisor import Supervisor
from schemas.config import Settings
from schemas.errors import MailtideError
from streams.sender.smtp import server_of
from transport import topics

log = structlog.get_logger()


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold the home's services as long as the block runs: the kernel lets go of them, too, when the process is killed.

    Raises MailtideError where another `up` or `demo` holds them.
    """
    file = home / "run" / "up.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:  # not "w": whoever is refused must not wipe out who holds it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = f"process {pid}" if (pid := lock.read()) else "another process"
            raise MailtideError(
                f"{holder} runs the services of {home.resolve()} already: stop it, or give this one a MAILTIDE_HOME of its own"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def ground(settings: Settings, halt: Halt | None = None) -> Iterator[Settings]:
    """Kafka with its topics, and an SMTP server: settings in which both addresses stand. ``halt`` as for ``broker.running``."""
    # The mail server first: a worker that finds this home's Kafka finds it, too.
    with _mail_server(settings) as with_smtp, broker.running(with_smtp, halt) as ready:
        topics.create(ready)
        yield ready


@contextlib.contextmanager
def _mail_server(settings: Settings) -> Iterator[Settings]:
    if settings.smtp.url:
        yield settings
        return
    server = mail_server.start(settings)
    try:
        url = f"smtp://127.0.0.1:{server.port}"
        with endpoints.listed(Path(settings.home), "smtp", url):
            yield msgspec.structs.replace(settings, smtp=msgspec.structs.replace(settings.smtp, url=url))
    finally:
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
    with alone(Path(settings.home)):
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
    log.info("up", kafka=settings.kafka.bootstrap, smtp=server_of(settings.smtp.url), home=settings.home, clock=settings.clock)
    try:
        while not halt.wait(0.25):
            supervisor.tick()
    finally:
        log.info("draining")
        supervisor.stop()
