"""Faults of the world around: broker, mail server, disk, clock, and what comes in."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from pathlib import Path

import msgspec

from models.writer.base import fingerprint
from schemas.mail import iso
from schemas.release import Release
from schemas.topics import DRAFTS, EVENTS, RELEASES, VECTORS
from tests.chaos.cluster import Flock
from tests.chaos.events import Told
from tests.chaos.processes import parts
from tests.tiny_model import tiny

OUTAGE = 30.0  # seconds
SMALL_DISK = "300k"


def told(flock: Flock, story: Told, _chance: random.Random) -> None:
    """Nothing but the story: the mail server does the harm."""
    for piece in parts(story, 3):
        flock.publish(piece)


def _outage(flock: Flock, story: Told, end: str, seconds: float) -> None:
    first, second = parts(story, 2)
    before = flock.applied
    flock.publish(first)
    flock.until(lambda: flock.applied > before)
    getattr(flock.own_broker, end)()
    back = time.monotonic() + seconds
    flock.until(lambda: time.monotonic() >= back)
    flock.own_broker.start()
    flock.publish(second)


def broker_killed(flock: Flock, story: Told, _chance: random.Random) -> None:
    """Signal 9, and at once a new one on the same data."""
    _outage(flock, story, "kill", 0.0)


def broker_stopped(flock: Flock, story: Told, _chance: random.Random) -> None:
    """Half a minute without one."""
    _outage(flock, story, "stop", OUTAGE)


def wiped(flock: Flock, story: Told, _chance: random.Random) -> None:
    """All that lies here of states, models and adapters is gone; addresses and keys are another matter (see docs)."""
    first, second = parts(story, 2)
    before = flock.applied
    flock.publish(first)
    flock.until(lambda: flock.applied > before)
    for worker in ("intake", "mail"):
        flock.kill(worker)
    for name in ("state", "run", "adapters", "writer"):
        shutil.rmtree(Path(flock.settings.home) / name, ignore_errors=True)
    for worker in ("intake", "mail"):
        flock.start(worker)
    flock.publish(second)


def disk_full(flock: Flock, story: Told, _chance: random.Random) -> None:
    """Intake's states lie on a tmpfs of its own that is too small. It dies again and again; then it gets room."""
    state = Path(flock.settings.home) / "state"
    state.mkdir(exist_ok=True)
    flock.leave("intake")
    mounted = f'mount -t tmpfs -o size={SMALL_DISK} none {state} && exec "$@"'
    flock.start("intake", before=("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh"), CHAOS_BEHIND="8000")
    log, full = flock.log("intake"), "free some space"
    said = log.read_text().count(full)
    for piece in parts(story, 12):
        flock.publish(piece)
        flock.until(lambda: flock.settled() or log.read_text().count(full) > said)
    flock.until(lambda: log.read_text().count(full) > said)
    flock.end("intake")
    flock.start("intake")


def clock_back(flock: Flock, story: Told, _chance: random.Random) -> None:
    """Both workers' wall clocks go back by an hour while mails are put off, and forward again."""
    clock = Path(flock.settings.home) / "clock"
    for worker in ("intake", "mail"):
        flock.leave(worker)
        flock.start(worker, CHAOS_CLOCK=str(clock))
    for piece, shift in zip(parts(story, 3), ("0", "-3600", "0"), strict=True):
        moods = flock.server._handler.moods
        flock.publish(piece)
        flock.until(lambda moods=moods: flock.server._handler.moods > moods or flock.settled())  # type: ignore[misc]
        clock.write_text(shift)  # while a mail waits for its next try
        flock.until(flock.settled)


POISON = (
    None,
    b"",
    b"\x00\x00\x00\x00\x01avro",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"type":"track"}',
    b'{"type":"track","event":"Order Completed","userId":"","timestamp":"2024-03-05T00:00:00Z"}',
    b'{"type":"track","event":"Order Completed","userId":"x","timestamp":"yesterday"}',
    b'{"type":"track","event":"Order Completed","userId":"x","timestamp":"2999-01-01T00:00:00Z"}',
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"[" * 200_000,
    b'{"type":"track","event":7,"userId":{"a":1},"timestamp":[]}',
)


def poison(flock: Flock, story: Told, chance: random.Random) -> None:
    """Rows of what nobody can read, in every partition, between the events and in what comes after them."""
    buried, sown = flock.dead_letters(), 0
    for piece in parts(story, 3):
        for name in ("a", "b", "c", "d"):  # of both partitions
            flock.put((EVENTS, name, value) for value in chance.sample(POISON, len(POISON)))
            sown += len(POISON)
            flock.put((topic, name, value) for topic in (DRAFTS, VECTORS) for value in (None, b"", b"{", b"[1]", b'{"intent_id":1}'))
        flock.publish(piece)
    flock.until(flock.settled)
    assert flock.dead_letters() - buried == sown


def corrupt_adapters(flock: Flock, story: Told, chance: random.Random) -> None:
    """Artifacts that are missing, torn, of another base, and bytes that only their sum is right of; and records that are none."""
    home = Path(flock.settings.home)
    junk = chance.randbytes(4096)
    whole = hashlib.sha256(junk).hexdigest()
    (home / "junk").write_bytes(junk)
    epoch = len(flock.follower.seen.releases) * 10
    bad = {
        "missing": (str(home / "nowhere"), whole),
        "torn": (str(home / "junk"), hashlib.sha256(b"other").hexdigest()),
        "noise": (str(home / "junk"), whole),
        "path": (str(home / "junk"), "../../../etc/passwd"),
    }

    def refusals() -> int:
        told = flock.log("mail").read_text()
        return told.count("refused") + told.count("can't be read and is left out")

    before = refusals()
    first, second = parts(story, 2)
    flock.publish(first)
    records = []
    for number, (name, (artifact, digest)) in enumerate(bad.items()):
        release = Release(
            release_id=f"c0-{name}-{epoch}",
            cluster="c0",
            epoch=epoch + number + 1,
            artifact=artifact,
            sha256=digest,
            base_sha256=fingerprint(tiny()),
            rank=8,
            at=iso(time.time()),
        )
        records.append((RELEASES, "c0", msgspec.json.encode(release)))
    flock.put([*records, (RELEASES, "c0", b"{"), (RELEASES, "c0", b'{"epoch":"x"}')])
    flock.until(lambda: refusals() >= before + len(bad) + 2)
    flock.publish(second)
