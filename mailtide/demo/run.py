"""The main job in one command: a year of purchases through a real Kafka to emails that a mail server accepted."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mailtide.demo.follower import Follower
from mailtide.demo.simulated_readers import Readers
from mailtide.demo.summary import missing, print_summary
from mailtide.local import broker
from mailtide.replay.publish import Summary, replay
from mailtide.services.supervisor import SERVICES, Supervisor
from mailtide.services.up import alone, ground
from schemas.config import Settings
from schemas.errors import MailtideError

DAYS, CUSTOMERS = 364, 30  # the panel's year; as many households as two slow cores write for in five minutes
MARK = "demo.started"  # stands in a home that a demo made, which a demo may empty again
LETTING_GO = 30.0  # seconds that the services of a killed demo take to see it, and to let go of its Kafka
STATE = (
    "kafka",
    "state",
    "learners",
    "training",
    "artifacts",
    "outbox",
    "run/*.json",  # its locks stay: whoever holds one must keep it
    "logs",
    "keys",
    "profiles.db",
    "profiles.db-wal",
    "profiles.db-shm",
)
OPEN_AT_MOST = 64  # intents without an outcome before the replay waits: rows stay full, mails belong to their day, templates stay unused
ENOUGH_TO_LEARN, REFIT_PATIENCE = 12, 400.0  # sent mails of a cluster from which its refit is waited for, and for how many seconds
UNHURRIED_FROM = 1 / 2  # of the replay on, a day takes its time until a release is out: mail flows while it comes, and after
A_DAY = 1.5  # seconds
SAID_EVERY = 15.0  # seconds between lines of progress where no terminal shows bars
PATIENCE = 300.0  # seconds without any progress after which the demo gives up and says where it hangs


@dataclass
class Gauge:
    """Peak memory of the demo and all its children, and progress to notice a standstill by."""

    peak_bytes: int = 0
    moved_at: float = field(default_factory=time.monotonic)
    last: tuple[int, ...] = ()

    def measure(self) -> None:
        """Sum of resident sizes now; keeps the largest."""
        total = 0
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue  # it ended between the listing and the look
        self.peak_bytes = max(self.peak_bytes, total)

    def check(self, *position: int) -> None:
        """MailtideError when nothing moved for too long."""
        if position != self.last:
            self.last, self.moved_at = position, time.monotonic()
        elif time.monotonic() - self.moved_at > PATIENCE:
            raise MailtideError(
                f"nothing moved for {PATIENCE:.0f} s (intake lag, open intents = {position}); read the logs under <home>/logs"
            )


def prepare(settings: Settings) -> None:
    """Empty the home of an earlier demo, so that the year begins anew; what was fetched and built stays.

    Raises MailtideError where the home holds what no demo made, or what another process uses.
    """
    home = Path(settings.home)
    home.mkdir(parents=True, exist_ok=True)
    if not (home / MARK).exists():
        if (home / "kafka").exists() or (home / "state").exists():
            raise MailtideError(f"{home} holds events that are no demo's: choose another MAILTIDE_HOME for the demo")
        (home / MARK).touch()
        return
    deadline = time.monotonic() + LETTING_GO
    while broker.held(home):
        if time.monotonic() > deadline:
            raise MailtideError(f"another process uses the Kafka of {home}: stop it (a monitor, a worker), then start the demo again")
        time.sleep(0.2)
    for place in [place for name in STATE for place in home.glob(name)]:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def main(settings: Settings, days: int | None, customers: int | None, console: Console) -> dict[str, Any]:
    """Run the demo; the summary, which also stands in ``<home>/demo.json``."""
    started = time.monotonic()
    settings = msgspec.structs.replace(settings, clock="event")
    with alone(Path(settings.home)):
        prepare(settings)
        console.print("starting Kafka, its topics and the mail server")
        with ground(settings) as ready:
            return _run(ready, days or DAYS, customers or CUSTOMERS, console, started)


def _run(settings: Settings, days: int, customers: int, console: Console, started: float) -> dict[str, Any]:
    follower, gauge = Follower(settings), Gauge()
    services: Mapping[str, list[str]] = {**SERVICES, "trainer": ["train", "--demo"]}
    supervisor = Supervisor(settings, services)
    supervisor.start()
    follower.start()
    try:
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        with progress:
            published = asyncio.run(_drive(settings, days, customers, follower, supervisor, gauge, progress))
    finally:
        supervisor.stop()
        follower.close()
    summary = _summary(settings, follower, gauge, published, time.monotonic() - started)
    (Path(settings.home) / "demo.json").write_text(json.dumps(summary, indent=2) + "\n")
    print_summary(summary, settings, console)
    return summary


async def _drive(
    settings: Settings, days: int, customers: int, follower: Follower, supervisor: Supervisor, gauge: Gauge, progress: Progress
) -> Summary:
    seen = follower.seen
    days_bar = progress.add_task("a year of purchases, day by day", total=days)
    mail_bar = progress.add_task("emails: intents with their outcome", total=None)
    train_bar = progress.add_task("releases published", total=None)

    said = time.monotonic()

    def show() -> None:
        nonlocal said
        progress.update(mail_bar, completed=len(seen.outcomes), total=max(len(seen.triggers), 1))
        progress.update(train_bar, completed=len(seen.releases))
        if not progress.console.is_terminal and time.monotonic() - said >= SAID_EVERY:
            said = time.monotonic()
            progress.console.print(", ".join(f"{task.description.strip()}: {task.completed:.0f}" for task in progress.tasks))

    async def until(settled: Callable[[int], bool]) -> None:
        """Wait until intake applied all that is published now and ``settled(open intents)`` holds."""
        ends = await asyncio.to_thread(follower.event_ends)
        while True:
            supervisor.tick()
            show()
            lag = follower.intake_lag(ends)
            if lag == 0 and settled(seen.open_intents):
                return
            gauge.check(lag, seen.open_intents, len(seen.outcomes))
            await asyncio.sleep(0.02)

    def learnable() -> bool:
        """A very short replay has too few examples for any refit."""
        return seen.taught() >= ENOUGH_TO_LEARN

    async def released(within: float) -> None:
        last = time.monotonic() + within
        while not seen.releases and time.monotonic() < last and learnable():
            supervisor.tick()
            show()
            await asyncio.sleep(0.05)

    async def gate(_day: float) -> None:
        await until(lambda waiting: waiting <= OPEN_AT_MOST)
        gauge.measure()
        progress.advance(days_bar)
        if progress.tasks[days_bar].completed > UNHURRIED_FROM * days:
            await released(A_DAY)

    # Nobody real reads these mails: without answers there would be nothing to learn from.
    with Readers(settings) as readers:
        published = await replay(settings, "complete-journey", days, customers, gate=gate, readers=readers)
    await until(lambda waiting: waiting == 0)
    progress.update(days_bar, completed=days)
    await released(REFIT_PATIENCE)  # a short replay ends before the first refit does
    await until(lambda waiting: waiting == 0)
    show()
    gauge.measure()
    return published


def _summary(settings: Settings, follower: Follower, gauge: Gauge, published: Summary, seconds: float) -> dict[str, Any]:
    seen = follower.seen
    intents, outcomes = seen.by_trigger()
    clusters = seen.snapshot.clusters if seen.snapshot else ()
    # One that was promoted, or got newer odds, came again.
    newest = {(release.cluster, release.release_id): release for release in seen.releases}
    return {
        "events": published.events,
        "customers": published.customers,
        "simulated_reader": published.reader,
        "clusters": [{"id": cluster.id, "size": cluster.size, "description": cluster.description} for cluster in clusters],
        "notes": missing(published.customers, len(clusters), len(newest), seen.taught(), ENOUGH_TO_LEARN),
        "intents": intents,
        "outcomes": outcomes,
        "template_share": round(seen.origin_share("template"), 4),
        "pool_share": round(seen.origin_share("pool"), 4),
        "generated_share": round(seen.origin_share("generated"), 4),
        "releases": [msgspec.to_builtins(release) for release in newest.values()],
        "tokens_per_second": round(_tokens_per_second(Path(settings.home)), 1),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": gauge.peak_bytes,
        "dead_letters": seen.dead_letters,
        "lag": seen.open_intents,
    }


def _tokens_per_second(home: Path) -> float:
    """Tokens over the seconds in which a writer was busy, over all writers' last words in ``<home>/run/writer-*.json``."""
    told = [json.loads(file.read_text()) for file in (home / "run").glob("writer-*.json")]
    busy = sum(one["busy_seconds"] for one in told)
    return sum(one["tokens"] for one in told) / busy if busy else 0.0
