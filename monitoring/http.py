"""``/health/live``, ``/health/ready`` and ``/metrics`` of one service, from a thread of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from schemas.errors import SettingsError

log = structlog.get_logger()

Checks = Callable[[], Mapping[str, bool]]  # what must hold, by name


class Probe:
    """A listening server. ``host`` and ``port``: where it can be reached from this machine."""

    def __init__(self, server: Any, host: str) -> None:
        self._server, self.port = server, int(server.server_port)
        self.host = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="probe", daemon=True).start()

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def listen(host: str, port: int, service: str, registry: CollectorRegistry, live: Checks, ready: Checks) -> Probe:
    """Serve until closed. A taken port gives way to a free one, and the log says so once: a second Mailtide on a machine is no error.

    Raises SettingsError where ``host`` is none of this machine's addresses.
    """
    application = _application(registry, live, ready)
    for number in (port, 0):
        try:
            server = make_server(host, number, application, _Server, handler_class=_Quiet)
        except OSError as error:
            if number == 0:
                raise SettingsError(f"listen_host = {host!r}: can't listen there ({error.strerror or error})") from error
            continue
        probe = Probe(server, host)
        if port and number == 0:
            log.warning(
                "port_taken", service=service, port=port, instead=probe.port, mend="see <home>/run/endpoints.json, or choose a port"
            )
        return probe
    raise AssertionError("unreachable")


class _Server(ThreadingWSGIServer):
    daemon_threads = True
    allow_reuse_address = True  # a restarted service gets its port back at once


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds a silent client may hold a thread

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


def _application(registry: CollectorRegistry, live: Checks, ready: Checks) -> Callable[..., Iterable[bytes]]:
    metrics, health = make_wsgi_app(registry), {"/health/live": live, "/health/ready": ready}

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        checks = health.get(path)
        if checks is None:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics, /health/live or /health/ready\n"]
        found = dict(checks())
        status = "200 OK" if found and all(found.values()) else "503 Service Unavailable"
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(found).encode() + b"\n"]

    return answer
