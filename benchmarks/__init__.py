"""What Mailtide is measured by: ``python -m benchmarks [--only NAME]``.

A benchmark is a function in any module of this package:

    @benchmark("intake")
    def intake(home: Path, runs: int) -> list[Row]: ...

``home`` is a folder it may fill; ``runs`` is how often a timing is to be
repeated (report the median and say the spread in ``note``). ``peer`` is what
ours is compared with, measured in the same call on the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. ``peer`` None: nothing to compare with."""

    name: str
    ours: float
    peer: float | None
    unit: str
    runs: int = 1
    against: str = ""  # who the peer is
    better: Literal["higher", "lower"] = "higher"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is; below 1 it is worse. None without a peer."""
        if not self.peer or not self.ours:
            return None
        return self.ours / self.peer if self.better == "higher" else self.peer / self.ours


Benchmark = Callable[[Path, int], list[Row]]
REGISTRY: dict[str, Benchmark] = {}


def benchmark(name: str) -> Callable[[Benchmark], Benchmark]:
    """Register a benchmark under ``name``; ValueError where the name is taken."""

    def register(function: Benchmark) -> Benchmark:
        if name in REGISTRY:
            raise ValueError(f"two benchmarks are called {name}: give one another name")
        REGISTRY[name] = function
        return function

    return register
