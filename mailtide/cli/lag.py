"""``mailtide lag``: the table of consumer lag, and what it means for mail."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from mailtide.local import broker, endpoints
from mailtide.process.shutdown import deadline
from mailtide.services.up import signals
from monitoring.mail import MailFollower, Waiting
from monitoring.poll import LagPoller, LagRow
from monitoring.service import serve, wanted_groups
from monitoring.verdict import FEWEST
from schemas.config import Settings
from schemas.errors import KafkaUnavailable

BETWEEN = 0.5  # seconds between the looks of one answer; a rate needs two, a verdict three
WATCH = 1.0
CATCH_UP = 60.0  # seconds that reading the mail topics, or the broker its groups, may take
COMING = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError)


@contextmanager
def _looking(settings: Settings, group: str | None) -> Iterator[tuple[LagPoller, MailFollower]]:
    collector, follower = LagPoller(settings, wanted_groups(settings, group)), MailFollower(settings)
    try:
        yield collector, follower
    finally:
        collector.close()
        follower.close()


def look(settings: Settings, group: str | None) -> tuple[list[LagRow], Sequence[Waiting]]:
    """As many looks as a verdict needs, over a second: too short to call anything stalled; ``watch`` and the monitor do."""
    with broker.reading(settings) as ready, _looking(ready, group) as (collector, follower):
        _first(collector)
        for _ in range(FEWEST - 2):
            time.sleep(BETWEEN)
            collector.look()
        time.sleep(BETWEEN)
        return collector.look(), follower.look(time.time(), CATCH_UP) or ()


def _first(collector: LagPoller) -> None:
    """A broker that has just started reads its groups before it tells of them."""
    deadline = time.monotonic() + CATCH_UP
    while True:
        try:
            collector.look()
            return
        except KafkaUnavailable as error:
            if not isinstance(error.__cause__, COMING) or time.monotonic() > deadline:
                raise
        time.sleep(BETWEEN)


def plain(rows: Sequence[LagRow] | Sequence[Waiting]) -> list[dict[str, Any]]:
    """Rows as ``lag --json`` prints them."""
    return [dataclasses.asdict(row) for row in rows]


def watch(settings: Settings, group: str | None, console: Console) -> None:
    """A live table until Ctrl-C."""
    with broker.reading(settings) as ready, signals() as halt, _looking(ready, group) as (collector, follower):
        with Live(console=console, auto_refresh=False) as live:
            while not halt.is_set():
                live.update(tables(collector.look(), follower.look(time.time(), WATCH) or ()), refresh=True)
                halt.wait(WATCH)


def tables(rows: Sequence[LagRow], waiting: Sequence[Waiting]) -> Group:
    """Both tables, for people."""
    lag = Table("group", "topic", "partition", "committed", "end", "lag", "seconds", "rate/s", "drain s", "state", title="Consumer lag")
    for row in rows:
        cells = (row.lag_seconds, row.rate, row.drain_seconds)
        committed = "no commit yet" if row.committed is None else f"{row.committed:,}"
        lag.add_row(row.group, row.topic, str(row.partition), committed, f"{row.end:,}", f"{row.lag:,}", *map(_number, cells), row.state)
    mail = Table("stage", "trigger", "intents", "oldest s", "will expire", title="Mail that waits")
    for one in waiting:
        mail.add_row(one.stage, one.trigger, f"{one.intents:,}", f"{one.oldest_seconds:,.0f}", f"{one.will_expire:,}")
    return Group(lag, mail if waiting else "No mail waits.")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def monitor(settings: Settings) -> None:
    """Run the monitor until told to stop."""
    home = Path(settings.home)
    with broker.running(settings) as ready, signals() as halt, deadline(halt, "monitor"), ExitStack() as served:
        serve(ready, halt, lambda probe: served.enter_context(endpoints.listed(home, "monitor", f"{probe.url}/metrics")))
