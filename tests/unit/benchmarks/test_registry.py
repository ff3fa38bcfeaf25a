"""Every benchmark is found where it lies, without its module being imported."""

from __future__ import annotations

import importlib.util

from benchmarks.__main__ import homes


def test_every_benchmark_has_a_module() -> None:
    where = homes()
    assert {"intake_vs_quix", "writer_vs_peft", "writer_mails", "pool_burst"} <= where.keys()
    assert all(importlib.util.find_spec(f"benchmarks.{module}") for module in where.values())
