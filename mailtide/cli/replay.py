"""``mailtide replay``: publish a source to the Kafka in use, with progress."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mailtide.demo.simulated_readers import Readers
from mailtide.local import broker
from mailtide.replay.publish import answer_rest, replay
from mailtide.replay.sources.opening import known
from schemas.config import Settings
from transport import topics


def main(
    settings: Settings, source: str, days: int | None, customers: int | None, speed: float | None, console: Console, reader: bool = False
) -> Any:
    """Publish until the source ends; the summary as plain data. ``reader``: simulated readers answer the mails that are sent."""
    known(source)  # before a broker is started in vain
    with broker.running(settings) as ready:
        topics.create(ready)
        columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f} events", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(f"replay {source}", total=None)
            with Readers(ready) if reader else contextlib.nullcontext() as readers:
                summary = asyncio.run(
                    replay(
                        ready,
                        source,
                        days,
                        customers,
                        speed=speed,
                        progress=lambda count: progress.update(bar, completed=count),
                        readers=readers,
                    )
                )
                if readers is not None:
                    progress.update(bar, description="simulated readers answer the last mails")
                    asyncio.run(answer_rest(ready, readers))
                    summary = msgspec.structs.replace(summary, reader=readers.told())
    return msgspec.to_builtins(summary)
