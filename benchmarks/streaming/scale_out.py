"""What a change of workers costs with the state of 100,000 customers: one that joins, one that is killed."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from benchmarks import Row, benchmark
from benchmarks.streaming.crew import Crew, crew, viewed

CUSTOMERS = int(os.environ.get("BENCH_CUSTOMERS", "100000"))
PARTITIONS, EACH = 12, 2  # events of each customer


def _filled(workers: Crew) -> None:
    """Every customer has a state, and all of it is applied."""
    events = (viewed(f"c{number % CUSTOMERS}", number) for number in range(CUSTOMERS * EACH))
    asyncio.run(workers.publish(events))
    workers.until(workers.applied, "the customers' states")


def _holds(workers: Crew, *names: str) -> bool:
    """All partitions, shared out evenly."""
    return [len(workers.opened(name)) for name in names] == [PARTITIONS // len(names)] * len(names)


def _bytes(workers: Crew, name: str) -> int:
    """Of one worker's files of state."""
    return sum(file.stat().st_size for file in (workers.home / "state" / f"intake-{name}").rglob("*") if file.is_file())


@benchmark("scale_out")
def scale_out(home: Path, _runs: int) -> list[Row]:
    """A third worker on a fresh folder takes a third of the partitions over, with their states."""
    with crew(home / "scale_out", PARTITIONS) as workers:
        workers.start("one", "intake")
        workers.until(lambda: len(workers.opened("one")) == PARTITIONS, "the first worker's partitions")
        _filled(workers)
        state = _bytes(workers, "w0")
        workers.start("two", "intake")
        second = workers.until(lambda: _holds(workers, "one", "two"), "half of the partitions")
        began = time.monotonic()
        workers.start("three", "intake")
        workers.until(lambda: workers.opened("one") | workers.opened("two") != set(range(PARTITIONS)), "a rebalance")
        joined = time.monotonic() - began
        workers.until(lambda: _holds(workers, "one", "two", "three"), "a third of the partitions")
        whole = time.monotonic() - began
        note = f"{CUSTOMERS:,} customers, {PARTITIONS} partitions, {state / 1e6:.0f} MB of state; load {os.getloadavg()[0]:.1f}"
        return [
            Row(
                "scale_out",
                whole,
                30.0,
                "s",
                1,
                "goal",
                "lower",
                f"from the third's start to its last partition; second {second:.1f} s; {note}",
            ),
            Row("scale_out_pause", whole - joined, None, "s", 1, "", "lower", "partitions without a worker, at most"),
            Row("state_bytes_a_customer", state / CUSTOMERS, None, "B", 1, "", "lower", "RocksDB and its log, two events each"),
        ]


@benchmark("recovery_after_kill")
def recovery_after_kill(home: Path, _runs: int) -> list[Row]:
    """From signal 9 until a worker that is started at once has applied what was published at the kill."""
    found = []
    with crew(home / "recovery", PARTITIONS) as workers:
        workers.start("one", "intake")
        workers.until(lambda: len(workers.opened("one")) == PARTITIONS, "the worker's partitions")
        _filled(workers)
        for turn in range(3):
            name = "one" if turn == 0 else f"again{turn}"
            asyncio.run(workers.publish(viewed(f"c{number}", 10_000_000 + turn * 10_000 + number) for number in range(10_000)))
            workers.kill(name)
            began = time.monotonic()
            workers.start(f"again{turn + 1}", "intake")
            workers.until(workers.applied, "the rest")
            found.append(time.monotonic() - began)
    patience = workers.settings.kafka.session_timeout
    note = f"{min(found):.1f}-{max(found):.1f}, with the session time-out of {patience:.0f} s; {CUSTOMERS:,} customers"
    return [Row("recovery_after_kill", sorted(found)[1], None, "s", len(found), "", "lower", note)]
