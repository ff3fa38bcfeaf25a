"""Every fault: how it is done to a flock while a story is told, and what shows that it really happened."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from schemas.config import Settings
from tests.chaos import processes, world
from tests.chaos.cluster import WORKERS, Flock, Outcome, OwnBroker
from tests.chaos.events import Told, stream
from tests.chaos.smtp_faults import Moody, drops, hangs, says
from transport import topics

Harm = Callable[[Flock, Told, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """``harm`` tells the story, with the fault in it. ``moods``: the mail server. ``bit``: whether the outcome shows the fault."""

    harm: Harm
    moods: type[Moody] | None = None
    own_broker: bool = False
    partitions: int = 2
    bit: Callable[[Outcome], bool] = lambda _: True


STAGES = {
    "intake": ("before output", "after output", "before changelog", "amid changelog", "after changelog", "before store", "after store"),
    "mail": (
        *("before draft", "after draft", "before claim", "amid claim", "after claim"),
        *("before DATA", "after DATA", "before outcome", "amid outcome", "after outcome"),
    ),
}
MOODS = {
    "SMTP hangs at RCPT": (hangs("RCPT"), "sent"),
    "SMTP hangs after DATA": (hangs("DATA"), "unknown"),
    "SMTP resets at RCPT": (drops("RCPT", False), "sent"),
    "SMTP drops in DATA": (drops("DATA", False), "unknown"),
    "SMTP drops after DATA": (drops("DATA", True), "unknown"),
    "SMTP 421 at RCPT": (says(421, "RCPT"), "sent"),
    "SMTP 421 at DATA": (says(421, "DATA"), "sent"),
    "SMTP 451": (says(451, "DATA"), "sent"),
    "SMTP 550": (says(550, "RCPT", 1000), "failed"),
}
FAULTS: dict[str, Fault] = {
    "kill -9 of a worker, 10 random moments": Fault(processes.at_random(("intake", "mail") * 5)),
    **{f"kill -9 {place}": Fault(processes.at(place, worker)) for worker, places in STAGES.items() for place in places},
    "kill -9 of the trainer, publishing": Fault(processes.trainer),
    "kill -9 of the monitor": Fault(processes.monitor),
    "three workers on twelve partitions": Fault(processes.three, partitions=12),
    "two workers join and leave": Fault(processes.come_and_go),
    "zombie: SIGSTOP, SIGCONT": Fault(processes.zombie),
    "stuck: a task waits for ever": Fault(processes.stuck("hang")),
    "stuck: a blocked event loop": Fault(processes.stuck("block")),
    "kill -9 of the broker": Fault(world.broker_killed, own_broker=True),
    "broker stopped 30 s": Fault(world.broker_stopped, own_broker=True),
    **{name: Fault(world.told, mood, bit=lambda seen, end=end: seen.outcomes.get(end, 0) > 0) for name, (mood, end) in MOODS.items()},
    "disk full under RocksDB": Fault(world.disk_full),
    "state folder wiped": Fault(world.wiped),
    "clock stepped back an hour": Fault(world.clock_back, says(451, "DATA")),
    "poison messages in a row": Fault(world.poison),
    "corrupt adapters": Fault(world.corrupt_adapters),
}


def suffer(name: str, settings: Settings, seeds: Sequence[int]) -> Outcome:
    """The fault, once for each seed. ``settings``: a fresh home and prefix, two partitions."""
    fault = FAULTS[name]
    own = OwnBroker(Path(settings.home) / "own") if fault.own_broker else None
    try:
        if own is not None:
            settings = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, bootstrap=own.bootstrap))
            topics.create(settings)
        outcome = endure(settings, [(fault.harm, seed) for seed in seeds], fault.moods, own)
    finally:
        if own is not None:
            own.kill()
    assert fault.bit(outcome), f"{name} left no trace: {outcome.outcomes}"
    return outcome


def endure(
    settings: Settings, harms: Sequence[tuple[Harm, int]], moods: type[Moody] | None = None, own: OwnBroker | None = None
) -> Outcome:
    """One flock, one harm with its seed after the other; what came of all of it."""
    flock = Flock(settings, moods)
    flock.own_broker = own
    try:
        for worker in WORKERS:
            flock.start(worker)
        for number, (harm, seed) in enumerate(harms):
            harm(flock, stream(seed, number), random.Random(seed))
            flock.until(flock.settled)
        assert moods is None or flock.server._handler.moods, "the mail server had no occasion for its mood"
        return flock.outcome()
    finally:
        flock.close()
