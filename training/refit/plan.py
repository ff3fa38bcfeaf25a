"""Which examples one refit learns from, is judged on, and replays; kept in a file, so that a killed refit goes on with the same."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from training.feedback.examples import ExampleRow

HELD_OUT = 5  # one in so many
LEAST_HELD_OUT = 4  # fewer, and a bootstrap over them is no interval
FEWEST = 10  # new examples below which no held-out loss means anything
MOST = 2000  # newest examples that a refit looks at
HELD_OUT_MOST = 64  # the newest of them: losses of more cost minutes on a small machine and change no verdict
REPLAYED_MOST = 32  # older held-out examples on which forgetting is judged


class Plan(msgspec.Struct, frozen=True):
    """``learn`` has the replayed ones in it; ``older``: held out of what earlier refits learned. ``examples``: all that were known."""

    cluster: str
    serving: str  # sha256 of the adapter that it starts from, empty for the base
    examples: int
    learn: list[ExampleRow]
    held_out: list[ExampleRow]
    older: list[ExampleRow]


def held_out(row: ExampleRow) -> bool:
    """Whether a mail is kept from learning: by its intent's hash, so the same at each refit."""
    return zlib.crc32(row.intent_id.encode()) % HELD_OUT == 0


def split(rows: Sequence[ExampleRow]) -> tuple[list[ExampleRow], list[ExampleRow]]:
    """Rows to learn from and rows held out; where chance held out too few, every fifth, or as many more as a verdict needs."""
    kept = [row for row in rows if held_out(row)]
    if len(kept) < max(LEAST_HELD_OUT, len(rows) / (2 * HELD_OUT)):
        every = max(2, min(HELD_OUT, len(rows) // LEAST_HELD_OUT))
        return [row for n, row in enumerate(rows) if n % every], [row for n, row in enumerate(rows) if n % every == 0]
    return [row for row in rows if not held_out(row)], kept


def plan(cluster: str, serving: str, found: Sequence[ExampleRow], learned: int, elders: Sequence[ExampleRow], replay: float) -> Plan:
    """The refit of ``found`` (oldest first), of which ``learned`` were learned before; ``elders``: of the cluster that it split from.

    The share ``replay`` of what is learned are older examples, drawn at random, as far as there are any. Where hardly any is new,
    all count as new.
    """
    if len(found) - learned < FEWEST:
        learned = 0
    fresh, older = list(found[learned:])[-MOST:], [*elders, *found[:learned]]
    learn, kept = split(fresh)
    again, older_kept = split(older)
    count = min(len(again), round(replay / (1.0 - replay) * len(learn))) if replay < 1.0 else len(again)
    drawn = random.Random(f"{cluster}/{len(found)}").sample(again, count)
    return Plan(cluster, serving, len(found), [*learn, *drawn], kept[-HELD_OUT_MOST:], older_kept[-REPLAYED_MOST:])


def save(file: Path, made: Plan) -> None:
    """Whole or not at all."""
    fresh = file.with_suffix(f".{os.getpid()}.new")
    fresh.write_bytes(msgspec.msgpack.encode(made))
    fresh.replace(file)


def resume(file: Path, serving: str, found: Sequence[ExampleRow], elders: Sequence[ExampleRow]) -> Plan | None:
    """The plan of a refit that did not end; None where another release serves by now, or one of its mails may teach no more."""
    try:
        known = msgspec.msgpack.decode(file.read_bytes(), type=Plan)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    allowed = {row.intent_id for row in (*found, *elders)}
    whole = all(row.intent_id in allowed for row in (*known.learn, *known.held_out, *known.older))
    return known if known.serving == serving and whole else None
