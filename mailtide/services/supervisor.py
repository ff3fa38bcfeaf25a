"""Every service as a process of its own, watched: one that dies is started again, and the log says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from mailtide.process.children import pause, spawn, stop
from mailtide.process.failure_reason import cause
from schemas.config import Settings

GRACE = 8.5  # seconds that the services have to drain, all at once; they cut off what is left after 8

SERVICES: dict[str, list[str]] = {
    "intake": ["worker", "--stages", "intake,clusters"],
    "mail": ["worker", "--stages", "writer,sender"],
    "trainer": ["train"],
    "monitor": ["monitor"],
}

log = structlog.get_logger()


def environment(settings: Settings) -> dict[str, str]:
    """What a child needs to know to find the same Kafka, SMTP server and home as we do."""
    return os.environ | {
        "MAILTIDE_HOME": str(Path(settings.home).resolve()),
        "MAILTIDE_KAFKA": settings.kafka.bootstrap,
        "MAILTIDE_SMTP": settings.smtp.url,
        "MAILTIDE_CLOCK": settings.clock,
    }


@dataclass
class Service:
    """One supervised process."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    log: Path = Path()
    logged: int = 0  # bytes that lay in the log before this start
    deaths: int = 0
    again_at: float = 0.0


@dataclass
class Supervisor:
    """Starts services, restarts the dead, stops them in order. All calls from the main thread."""

    settings: Settings
    services: Mapping[str, list[str]] = field(default_factory=lambda: SERVICES)
    extra_environment: Mapping[str, str] = field(default_factory=dict)
    running: list[Service] = field(default_factory=list)

    def start(self) -> None:
        """Start every service; what each prints goes to ``<home>/logs/<service>.log``."""
        (Path(self.settings.home) / "logs").mkdir(parents=True, exist_ok=True)
        self.running = [Service(name, command) for name, command in self.services.items()]
        for service in self.running:
            self._launch(service)

    def _launch(self, service: Service) -> None:
        service.log = out = Path(self.settings.home) / "logs" / f"{service.name}.log"
        service.logged = out.stat().st_size if out.exists() else 0
        command = [sys.executable, "-m", "mailtide", *service.command]
        service.process = spawn(command, out, env=environment(self.settings) | dict(self.extra_environment))

    def tick(self) -> None:
        """Start again what died; a service that keeps dying waits longer each time, 30 s at most."""
        now = time.monotonic()
        for service in self.running:
            if service.process is not None and service.process.poll() is not None:
                service.deaths += 1
                code, wait = service.process.returncode, pause(service.deaths)
                told = {"why": cause(service.log, service.logged, code), "log": str(service.log)}
                log.warning("service_died", service=service.name, code=code, restart_in_seconds=wait, **told)
                service.process, service.again_at = None, now + wait
            elif service.process is None and now >= service.again_at:
                self._launch(service)
                log.info("service_restarted", service=service.name, deaths=service.deaths)

    def stop(self) -> None:
        """SIGTERM to all at once, then wait for each to drain."""
        alive = [service.process for service in self.running if service.process is not None]
        for process in alive:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + GRACE
        for process in alive:
            stop(process, max(0.0, deadline - time.monotonic()))
        self.running = []
