"""``mailtide replay``: publish a source to the Kafka in use, with progress."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mailtide import broker, topics
from mailtide.replay import replay
from schemas.config import Settings


def main(settings: Settings, source: str, days: int | None, customers: int | None, speed: float | None, console: Console) -> Any:
    """Publish until the source ends; the summary as plain data."""
    with broker.running(settings) as ready:
        topics.create(ready)
        columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f} events"), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(f"replay {source}", total=None)
            summary = asyncio.run(
                replay(ready, source, days, customers, speed=speed, progress=lambda count: progress.update(bar, completed=count))
            )
    return msgspec.to_builtins(summary)
