"""The monitor: looks every few seconds, serves ``/metrics`` and ``/health``, and says on its log when a verdict changes."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from monitoring.collect import Collector, Row
from monitoring.mail import MailFollower
from monitoring.metrics import Series
from monitoring.verdict import State
from schemas.config import Settings
from schemas.errors import KafkaUnavailable, SettingsError

log = structlog.get_logger()


def wanted_groups(settings: Settings, group: str | None = None) -> Callable[[str], bool]:
    """Which groups to look at: the one named, else ``monitor.groups``, else Mailtide's own.

    Raises SettingsError where the setting is no regular expression.
    """
    if group is not None:
        return lambda name: name == group
    own = settings.kafka.prefix + "mailtide-"
    if not settings.monitor.groups:
        return lambda name: name.startswith(own)
    try:
        pattern = re.compile(settings.monitor.groups)
    except re.error as error:
        raise SettingsError(f"monitor.groups = {settings.monitor.groups!r} is no regular expression: {error}") from error
    return lambda name: pattern.fullmatch(name) is not None


def serve(settings: Settings, halt: threading.Event, ready: Callable[[int], None] = lambda _port: None) -> None:
    """Until ``halt``. ``ready`` is told the port once it listens. SettingsError where the port is taken."""
    collector, follower = Collector(settings, wanted_groups(settings)), MailFollower(settings)
    series, registry = Series(collector), CollectorRegistry()
    registry.register(series)
    try:
        server = make_server("127.0.0.1", settings.monitor.port, _application(registry), ThreadingWSGIServer, handler_class=_Quiet)
    except OSError as error:
        raise SettingsError(f"port {settings.monitor.port} (monitor.port) is taken: choose another, or 0 for a free one") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    ready(server.server_port)
    before: dict[tuple[str, str, int], State] = {}
    try:
        while not halt.is_set():
            try:
                series.rows = collector.look()
                series.waiting = follower.look(time.time())
                before = _tell(before, series.rows)
            except KafkaUnavailable as error:
                log.warning("kafka_unavailable", error=str(error))
                follower.close()
            halt.wait(settings.monitor.interval)
    finally:
        server.shutdown()
        server.server_close()
        collector.close()
        follower.close()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


def _application(registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "").startswith("/health/"):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"ok\n"]
        return metrics(environ, start_response)

    return answer


def _tell(before: dict[tuple[str, str, int], State], rows: list[Row]) -> dict[tuple[str, str, int], State]:
    now = {(row.group, row.topic, row.partition): row.state for row in rows}
    for row in rows:
        key = (row.group, row.topic, row.partition)
        if before.get(key, State.UNKNOWN) is not row.state and row.state not in (State.UNKNOWN, State.OK):
            log.warning("lag_state", group=row.group, topic=row.topic, partition=row.partition, state=row.state.value, lag=row.lag)
    return now
