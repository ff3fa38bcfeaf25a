"""`make chaos`: ten kills for each fault and seed, in one table; exit status 1 where anything was lost, doubled or changed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from mailtide import broker, topics
from schemas.config import Settings
from tests.chaos.killing import disturbed

KILLS = 10
SEEDS = (1, 2, 3)
FAULTS = {"kill -9 intake": ("intake",), "kill -9 mail": ("mail",), "kill -9 both in turn": ("intake", "mail")}


def main() -> int:
    """Run every fault with every seed."""
    table = Table("fault", "seed", "events", "intents", "sent", "unknown", "lost", "twice", "differ", "breaches")
    bad = 0
    with tempfile.TemporaryDirectory(prefix="mailtide-chaos-") as home, broker.running(Settings(home=home)) as ready:
        for fault, victims in FAULTS.items():
            for seed in SEEDS:
                name = f"{'-'.join(victims)}{seed}."
                kafka = msgspec.structs.replace(ready.kafka, prefix=name, partitions=2)
                settings = msgspec.structs.replace(ready, home=str(Path(home) / name), kafka=kafka)
                topics.create(settings)
                found = disturbed(settings, seed, (victims * KILLS)[:KILLS])
                breaches = len(found.report.breaches)
                bad += found.lost + found.twice + len(found.differ) + breaches
                sent, unknown = found.outcomes.get("sent", 0), found.outcomes.get("unknown", 0)
                row = (seed, found.events, found.intents, sent, unknown, found.lost, found.twice, len(found.differ), breaches)
                table.add_row(fault, *map(str, row))
    Console().print(table)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
