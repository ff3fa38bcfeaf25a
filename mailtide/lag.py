"""``mailtide lag``: the table of consumer lag, and what it means for mail."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from mailtide import broker
from mailtide.up import signals
from monitoring.collect import Collector, Row
from monitoring.mail import MailFollower, Waiting
from monitoring.service import serve, wanted_groups
from schemas.config import Settings

BETWEEN = 1.0  # seconds between looks; a rate needs two


def look(settings: Settings, group: str | None) -> tuple[list[Row], list[Waiting]]:
    """Two looks a second apart."""
    with broker.running(settings) as ready:
        collector, follower = Collector(ready, wanted_groups(ready, group)), MailFollower(ready)
        try:
            collector.look()
            time.sleep(BETWEEN)
            rows, waiting = collector.look(), follower.look(time.time())
        finally:
            collector.close()
            follower.close()
    return rows, waiting


def plain(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as ``lag --json`` prints them."""
    return [dataclasses.asdict(row) for row in rows]


def watch(settings: Settings, group: str | None, console: Console) -> None:
    """A live table until Ctrl-C."""
    with broker.running(settings) as ready, signals() as halt:
        collector, follower = Collector(ready, wanted_groups(ready, group)), MailFollower(ready)
        try:
            with Live(console=console, auto_refresh=False) as live:
                while not halt.is_set():
                    live.update(tables(collector.look(), follower.look(time.time())), refresh=True)
                    halt.wait(BETWEEN)
        finally:
            collector.close()
            follower.close()


def tables(rows: list[Row], waiting: list[Waiting]) -> Group:
    """Both tables, for people."""
    lag = Table("group", "topic", "partition", "committed", "end", "lag", "seconds", "rate/s", "drain s", "state", title="Consumer lag")
    for row in rows:
        cells = (row.lag_seconds, row.rate, row.drain_seconds)
        lag.add_row(
            row.group, row.topic, str(row.partition), f"{row.committed:,}", f"{row.end:,}", f"{row.lag:,}", *map(_number, cells), row.state
        )
    mail = Table("trigger", "at the writer", "at the sender", "oldest s", "will expire", title="Mail that waits")
    for one in waiting:
        mail.add_row(one.trigger, str(one.at_writer), str(one.at_sender), f"{one.oldest_seconds:.0f}", str(one.will_expire))
    return Group(lag, mail)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def monitor(settings: Settings) -> None:
    """Run the monitor until told to stop."""
    from pathlib import Path

    from mailtide import endpoints

    halt: threading.Event
    with broker.running(settings) as ready, signals() as halt:
        serve(ready, halt, lambda port: endpoints.put(Path(settings.home), monitor=f"http://127.0.0.1:{port}/metrics"))
