"""The monitor: looks every few seconds, serves ``/metrics`` and ``/health``, and says on its log when a verdict changes."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from monitoring.http import Probe, listen
from monitoring.mail import MailFollower
from monitoring.metrics import Series
from monitoring.poll import LagPoller, LagRow
from monitoring.verdict import State
from schemas.config import Settings
from schemas.errors import KafkaUnavailable, SettingsError

STALE = 3.0  # intervals, and as many seconds on top, after which the newest look is no answer any more

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


def serve(settings: Settings, halt: threading.Event, ready: Callable[[Probe], None] = lambda _probe: None) -> None:
    """Until ``halt``. ``ready`` is told where it listens. SettingsError where it can't listen at all."""
    collector, follower = LagPoller(settings, wanted_groups(settings)), MailFollower(settings)
    series, registry = Series(collector), CollectorRegistry()
    registry.register(series)
    ProcessCollector(registry=registry)
    stale = STALE * (settings.monitor.interval + 1.0)
    pulse = time.monotonic()

    def lives() -> dict[str, bool]:
        return {"looking": time.monotonic() - pulse < 60.0 + stale}

    def is_ready() -> dict[str, bool]:
        return {"lag": time.time() - collector.looked_at < stale, "mail": series.waiting is not None}

    probe = listen(settings.listen_host, settings.monitor.port, "monitor", registry, lives, is_ready)
    ready(probe)
    before: dict[tuple[str, str, int], State] = {}
    try:
        while not halt.is_set():
            pulse = time.monotonic()
            try:
                series.rows, series.success = collector.look(), True
                series.waiting = follower.look(time.time())
                before = _tell(before, series.rows)
            except KafkaUnavailable as error:
                # What was true before the broker went is no figure of now.
                series.rows, series.waiting, series.success = (), None, False
                log.warning("kafka_unavailable", error=str(error))
                follower.close()
            halt.wait(settings.monitor.interval)
    finally:
        probe.close()
        collector.close()
        follower.close()


def _tell(before: dict[tuple[str, str, int], State], rows: list[LagRow]) -> dict[tuple[str, str, int], State]:
    """One line for the partitions of a topic that changed alike: a topic may have thousands. ``offset`` is the first one's."""
    changed: dict[tuple[str, str, State], list[LagRow]] = {}
    for row in rows:
        was = before.get((row.group, row.topic, row.partition), State.UNKNOWN)
        if was is not row.state and not {was, row.state} <= {State.UNKNOWN, State.OK}:
            changed.setdefault((row.group, row.topic, row.state), []).append(row)
    for (group, topic, state), alike in changed.items():
        tell = log.info if state in (State.OK, State.UNKNOWN) else log.warning
        first, lag = alike[0], sum(row.lag for row in alike)
        place = {"group": group, "topic": topic, "partition": first.partition, "offset": first.committed}
        tell("lag_state", **place, partitions=len(alike), state=state.value, lag=lag)
    return {(row.group, row.topic, row.partition): row.state for row in rows}
