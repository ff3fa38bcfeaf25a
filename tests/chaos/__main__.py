"""`make chaos`: every fault at every seed, in one table; exit status 1 where anything was lost, doubled or changed."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from mailtide.local import broker
from schemas.config import Settings
from tests.chaos.faults import FAULTS, suffer
from transport import topics

COLUMNS = ("fault", "seeds", "events", "intents", "sent", "unknown", "lost", "twice")


def main() -> int:
    """Run every fault, or those that ``--only`` names a part of."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kill, stop and starve everything, and count.")
    parser.add_argument("--only", action="append", default=[], metavar="WORDS", help="faults whose name has these words in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--keep", type=Path, help="folder for homes and logs, kept; a temporary one without")
    chosen = parser.parse_args()
    names = list(dict.fromkeys(name for words in chosen.only or [""] for name in FAULTS if words in name))
    console, table, bad = Console(width=None if sys.stdout.isatty() else 140), Table(*COLUMNS), 0
    with tempfile.TemporaryDirectory(prefix="mailtide-chaos-") as temporary:
        home = (chosen.keep or Path(temporary)).absolute()
        with broker.running(Settings(home=str(home))) as ready:
            for number, name in enumerate(names):
                row = _row(name, ready, home / f"f{os.getpid()}-{number}", tuple(chosen.seeds), console)
                bad += row is None
                table.add_row(name, " ".join(map(str, chosen.seeds)), *(row or ["failed"]))
    console.print(table)
    return 1 if bad else 0


def _row(name: str, ready: Settings, home: Path, seeds: tuple[int, ...], console: Console) -> list[str] | None:
    """The figures; None, with the reason on the console, where a promise was broken or nothing came of it."""
    kafka = msgspec.structs.replace(ready.kafka, prefix=f"{home.name}.", partitions=FAULTS[name].partitions)
    settings = msgspec.structs.replace(ready, home=str(home), kafka=kafka)
    topics.create(settings)
    started = time.monotonic()
    try:
        found = suffer(name, settings, seeds)
    except Exception:
        console.print(f"[red]{name}: failed[/]; {home}")
        console.print(traceback.format_exc(), markup=False)
        return None
    figures = [found.events, found.intents, found.outcomes.get("sent", 0), found.outcomes.get("unknown", 0), found.lost, found.twice]
    said = f"{name}: {dict(zip(COLUMNS[2:], figures, strict=True))}, {time.monotonic() - started:.0f} s"
    console.print(said, f"ended by themselves: {found.deaths}" if found.deaths else "", markup=False, highlight=False)
    if found.clean:
        return list(map(str, figures))
    console.print(f"[red]{name}: broken[/]; {home}")
    for line in (*found.differ[:5], *found.report.breaches[:5]):
        console.print(str(line), markup=False)
    return None


if __name__ == "__main__":
    sys.exit(main())
