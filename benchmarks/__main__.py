"""``python -m benchmarks``: run what is registered, print one table, keep ``<home>/bench.json``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks import REGISTRY, Row

NAMED = re.compile(r'^@benchmark\("([^"]+)"\)', re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    where = homes()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Mailtide against its peers.")
    parser.add_argument("--only", action="append", metavar="NAME", choices=sorted(where), help=f"one of: {', '.join(sorted(where))}")
    parser.add_argument("--home", type=Path, default=Path(".mailtide/bench"), help="folder for what is made on the way, and for bench.json")
    parser.add_argument("--runs", type=int, default=3, help="how often a timing is repeated")
    chosen = parser.parse_args(arguments)
    chosen.home.mkdir(parents=True, exist_ok=True)
    console, rows, failed = Console(width=None if sys.stdout.isatty() else 200), [], []
    for name in chosen.only or sorted(where):
        console.print(f"[dim]{name} …")
        started = time.perf_counter()
        try:
            importlib.import_module(f"benchmarks.{where[name]}")
            rows += REGISTRY[name](chosen.home, chosen.runs)
        except Exception as error:  # the others still count
            failed.append(name)
            console.print(f"[red]{name} failed: {type(error).__name__}: {error}")
        console.print(f"[dim]{name}: {time.perf_counter() - started:.1f} s")
    console.print(table(rows))
    keep(chosen.home / "bench.json", rows)
    return 1 if failed else 0


def homes() -> dict[str, str]:
    """Benchmark by module, read from the sources: some import torch, which the others need not wait for."""
    folder = Path(benchmarks.__path__[0])
    sources = sorted(folder.rglob("*.py"))
    return {name: ".".join(path.relative_to(folder).with_suffix("").parts) for path in sources for name in NAMED.findall(path.read_text())}


def table(rows: list[Row]) -> Table:
    """All rows as one table; the ratio says how many times better ours is."""
    made = Table(title="Mailtide against its peers")
    for column in ("name", "ours", "peer", "unit", "ratio", "runs", "against", "note"):
        made.add_column(column, justify="right" if column in ("ours", "peer", "ratio", "runs") else "left")
    for row in rows:
        peer = "-" if row.peer is None else f"{row.peer:,.4g}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        made.add_row(row.name, f"{row.ours:,.4g}", peer, row.unit, ratio, str(row.runs), row.against, row.note)
    return made


def keep(path: Path, rows: list[Row]) -> None:
    """Newest row of each name stays, so that ``--only`` adds to earlier runs."""
    known = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine()}
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for row in rows:
        known[row.name] = asdict(row) | {"ratio": row.ratio, "at": at, "on": machine}
    spare = path.with_suffix(".tmp")
    spare.write_text(json.dumps({"rows": list(known.values())}, indent=1))
    spare.replace(path)


if __name__ == "__main__":
    sys.exit(main())
