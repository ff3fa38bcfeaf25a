"""The writer beside its peers, on the same prompts, and whole mails a second through the engine.

Tokens a second are of free decoding: every side decodes greedily the same
number of tokens for 120-token prompts, no phrase book, so that nothing is
forced. transformers + PEFT and ours carry an adapter a row, llama.cpp none.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import Row, benchmark
from benchmarks.writing.decoding import NEW, PROMPT, Ours, Speed, material, speed
from benchmarks.writing.llama import VERSION, built, measured, quantized

MAIN, SMALL, LARGE = 16, 1, 32  # rows; the first carries the plain name
Measure = Callable[[int], Speed]


@contextmanager
def peft(folder: Path, dtype: str) -> Iterator[Measure]:
    """transformers + PEFT in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peers.peft_writer", str(folder), dtype]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()  # loaded

        def run(rows: int) -> Speed:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{rows}\n")
            process.stdin.flush()
            said = json.loads(process.stdout.readline())
            return speed(rows, said["steps"], said["whole"])

        try:
            yield run
        finally:
            process.stdin.close()


def pairs(ours: Measure, peer: Measure, batches: tuple[int, ...], runs: int) -> dict[int, list[tuple[Speed, Speed]]]:
    """Peer, ours, peer, ours …: what else the machine does meets both alike."""
    found: dict[int, list[tuple[Speed, Speed]]] = {rows: [] for rows in batches}
    for _ in range(runs):
        for rows in batches:
            theirs = peer(rows)
            found[rows].append((ours(rows), theirs))
    return found


def _sizes(ours: Measure, peer: Measure, runs: int) -> dict[int, list[tuple[Speed, Speed]]]:
    """The largest once alone: a peer takes a minute for it."""
    return pairs(ours, peer, (MAIN, SMALL), runs) | pairs(ours, peer, (LARGE,), 1)


def rows_of(name: str, against: str, found: dict[int, list[tuple[Speed, Speed]]], note: str) -> list[Row]:
    """A row for each batch size, and one with the prompts' time at the main one. Medians."""
    made = []
    for rows, both in found.items():
        for part in ("decode", "whole") if rows == MAIN else ("decode",):
            ours, theirs = ([getattr(one[side], part) for one in both] for side in (0, 1))
            ending = "" if rows == MAIN else f"_{rows}"
            spread = f"ours {min(ours):.0f}-{max(ours):.0f}, peer {min(theirs):.0f}-{max(theirs):.0f}"
            said = f"batch {rows}, {PROMPT} + {NEW} tokens; {spread}; {note}"
            full = f"{name}{ending}{'_with_prompts' if part == 'whole' else ''}"
            made.append(Row(full, statistics.median(ours), statistics.median(theirs), "tokens/s", len(both), against, note=said))
    return made


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


@benchmark("writer_vs_peft")
def writer_vs_peft(home: Path, runs: int) -> list[Row]:
    """int8 with an adapter a row beside fp32 with an adapter a row; then both in fp32, and PEFT in bf16."""
    folder = material(home.absolute())
    ours, exact = Ours(folder), Ours(folder, "fp32")
    ours.run(1)
    with peft(folder, "fp32") as peer:
        peer(1)
        made = rows_of("writer_vs_peft", "transformers + PEFT fp32", _sizes(ours.run, peer, runs), f"ours int8; {_load()}")
        same = pairs(exact.run, peer, (MAIN,), 1)
        made += rows_of("writer_vs_peft_both_fp32", "transformers + PEFT fp32", same, f"ours fp32; {_load()}")[:1]
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    native = "bf16 in hardware" if "avx512_bf16" in flags or "amx_bf16" in flags else "no bf16 in this CPU, torch emulates it"
    with peft(folder, "bf16") as peer:
        half = pairs(ours.run, peer, (MAIN,), 1)
    return made + rows_of("writer_vs_peft_bf16", "transformers + PEFT bf16", half, f"ours int8; {native}; {_load()}")[:1]


@benchmark("writer_vs_llama_cpp")
def writer_vs_llama_cpp(home: Path, runs: int) -> list[Row]:
    """Ours with an adapter a row beside llama.cpp Q8_0 without any."""
    tools = built()
    folder = material(home.absolute())
    model, ours, threads = quantized(home.absolute(), tools), Ours(folder), os.cpu_count() or 1
    ours.run(1)
    found = _sizes(ours.run, lambda rows: measured(tools, model, [rows], threads)[rows], runs)
    note = f"ours int8 with an adapter a row, peer without; {_load()}"
    return rows_of("writer_vs_llama_cpp", f"llama.cpp Q8_0, {VERSION.split('.')[0]}", found, note)
