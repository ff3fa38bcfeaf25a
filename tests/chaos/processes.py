"""Faults of our own processes: killed, stopped, stuck, coming and going."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mailtide.local import endpoints
from tests.chaos.cluster import Flock
from tests.chaos.events import Told

Harm = Callable[[Flock, Told, random.Random], None]
STUCK_SECONDS = "8"  # without progress
ZOMBIE_SECONDS = 8.0  # past the workers' session time-out of 6


def parts(told: Told, count: int) -> Iterator[Told]:
    """Equal parts, in order."""
    size = -(-len(told) // count)
    for start in range(0, len(told), size):
        yield told[start : start + size]


def at_random(victims: tuple[str, ...]) -> Harm:
    """After each part but the last one victim dies while it works on that part."""

    def harm(flock: Flock, told: Told, chance: random.Random) -> None:
        *pieces, last = parts(told, len(victims) + 1)
        for victim, piece in zip(victims, pieces, strict=True):
            before = flock.progress(victim)
            flock.publish(piece)
            # A part may bring no new mail: then the victim dies idle.
            flock.until(lambda victim=victim, before=before: flock.progress(victim) > before or flock.settled())  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.3))  # the random moment: the fault itself, no wait for anything
            flock.kill(victim)
            flock.start(victim)
        flock.publish(last)

    return harm


def at(place: str, worker: str) -> Harm:
    """The worker dies at its first, second or third visit of a place in the code."""

    def harm(flock: Flock, told: Told, chance: random.Random) -> None:
        flock.leave(worker)
        flock.start(worker, at=f"{place}:{chance.randint(1, 3)}", CHAOS_BEHIND="8000")
        pieces = list(parts(told, 8))
        while len(pieces) > 1 and not flock.caught(worker):
            flock.publish(pieces.pop(0))
            flock.until(lambda: flock.caught(worker) or flock.settled())
        flock.dies(worker)
        flock.start(worker)
        for piece in pieces:
            flock.publish(piece)

    return harm


def monitor(flock: Flock, told: Told, _chance: random.Random) -> None:
    """It may be down as long as it likes: mail doesn't hang on it, and it comes back."""
    for piece in parts(told, 2):
        flock.start("monitor")
        flock.until(lambda: "monitor" in endpoints.read(Path(flock.settings.home)))  # written once it serves
        flock.publish(piece)
        flock.kill("monitor")
        endpoints.sweep(Path(flock.settings.home))


def come_and_go(flock: Flock, told: Told, chance: random.Random) -> None:
    """Two more of each join under load; one of them drains, the other is killed."""
    pieces = list(parts(told, 6))
    for number, piece in enumerate(pieces):
        before = flock.applied
        flock.publish(piece)
        flock.until(lambda before=before: flock.applied > before)  # type: ignore[misc]
        if number in (0, 2):
            for worker in ("intake2", "mail2") if number == 0 else ("intake3", "mail3"):
                flock.start(worker)
        elif number == 3:
            flock.leave("intake2")
            flock.leave("mail2")
        elif number == 4:
            for worker in chance.sample(("intake3", "mail3"), 2):
                flock.kill(worker)


def three(flock: Flock, told: Told, _chance: random.Random) -> None:
    """Each of three intake workers has a third; one is killed, and two have half each."""
    names = ["intake", "intake2", "intake3"]
    first, second = parts(told, 2)
    for name in names[1:]:
        flock.start(name)
    flock.until(lambda: [len(flock.opened(name)) for name in names] == [4, 4, 4])
    before = flock.applied
    flock.publish(first)
    flock.until(lambda: flock.applied > before)
    flock.kill("intake3")
    flock.publish(second)
    flock.until(lambda: [len(flock.opened(name)) for name in names[:2]] == [6, 6])
    assert not flock.opened("intake") & flock.opened("intake2")
    flock.leave("intake2")


def zombie(flock: Flock, told: Told, _chance: random.Random) -> None:
    """Each worker sleeps past its session while another takes over, and wakes up believing that all is still its own."""
    pieces = parts(told, 3)
    for worker in ("intake", "mail"):
        second, before = f"{worker}2", flock.progress(worker)
        flock.publish(next(pieces))
        flock.until(lambda worker=worker, before=before: flock.progress(worker) > before or flock.settled())  # type: ignore[misc]
        flock.signal(worker, signal.SIGSTOP)
        flock.start(second)
        asleep = time.monotonic() + ZOMBIE_SECONDS
        flock.until(lambda asleep=asleep: time.monotonic() > asleep and flock.settled())  # type: ignore[misc]
        flock.signal(worker, signal.SIGCONT)
        flock.leave(second)
    flock.publish(next(pieces))


def stuck(kind: str) -> Harm:
    """Intake comes to a stop with events before it; it notices, says so, and starts itself again."""

    def harm(flock: Flock, told: Told, _chance: random.Random) -> None:
        flock.leave("intake")
        said = flock.log("intake").read_text().count("worker_stuck")
        once = str(Path(flock.settings.home) / f"stuck-{said}")
        flock.start("intake", at="before batch:2", harm=kind, CHAOS_ONCE=once, MAILTIDE_PATIENCE=STUCK_SECONDS)
        for piece in parts(told, 4):
            flock.publish(piece)
        flock.until(lambda: flock.log("intake").read_text().count("worker_stuck") > said)
        flock.until(lambda: "mailtide_worker_stuck_restarts_total{" in flock.metrics("worker-w0") + flock.metrics("worker-w1"))

    return harm


def trainer(flock: Flock, told: Told, chance: random.Random) -> None:
    """It dies before and after each step of a release; the next one publishes whole, and mail goes on meanwhile."""
    places = ("before artifact", "after artifact", "before release", "after release")
    for place, piece in zip(chance.sample(places, len(places)), parts(told, len(places)), strict=True):
        flock.publish(piece)
        flock.start("publisher", at=place)
        flock.dies("publisher")
        flock.start("publisher")
        flock.until(lambda: flock.processes["publisher"].poll() == 0)
        del flock.processes["publisher"]
    published = flock.follower.seen.releases[-1].release_id
    flock.until(lambda: f"release {published} serves" in flock.log("mail").read_text())
