"""Whole mails a second: guided intents of many kinds through the writer's engine with continuous batching, none from the pool."""

from __future__ import annotations

import functools
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Row, benchmark
from benchmarks.writing.decoding import Ours, material
from models.phrasebook.book import GOODS, SITUATIONS, Book
from models.writer import Adapter, Cache, Engine, Guided, Request
from models.writer.prompt import Prompt, narrow, render, shared

MAILS = int(os.environ.get("BENCH_MAILS", "64"))
ROWS, CLUSTERS, GOAL = 16, 5, 4.5
SHARES = {
    "post_purchase": 5,
    "replenishment": 4,
    "recommendation": 4,
    "win_back": 2,
    "coupon": 2,
    "welcome": 1,
}
FACTS = {"coupon": ("coupon_code", "offer"), "post_purchase": ("order_id",)}
Spent = dict[str, list[tuple[int, float]]]  # by kind of call: tokens, seconds


def prompts(book: Book, count: int) -> Iterator[tuple[int, Prompt]]:
    """Cluster and prompt, as the writer's stage narrows it."""
    rng = random.Random(1)
    for trigger in rng.choices(list(SHARES), list(SHARES.values()), k=count):
        cluster, situation = rng.randrange(CLUSTERS), tuple(sorted(rng.sample(sorted(SITUATIONS), 2)))
        slots = tuple(sorted({"product_1", "category", *FACTS.get(trigger, ()), *(["product_2"] if rng.random() < 0.5 else [])}))
        about = f"{('small', 'large', 'mixed', 'fresh', 'seasonal')[cluster]} baskets"
        made = Prompt(trigger, rng.choice(("warm", "crisp", "playful")), "en", about, rng.choice(sorted(GOODS)), situation, slots)
        yield cluster, narrow(made, book)


@contextmanager
def watched() -> Iterator[Spent]:
    """Every call of the graph, by kind."""
    spent: Spent = {"step": [], "chunk": [], "prompt": []}
    chunk, step = Cache.chunk, Cache.step

    def timed_chunk(self: Cache, row: int, tokens: Sequence[int], *more: Any) -> Any:
        kind, began = "chunk" if self.length[row] > 0 else "prompt", time.perf_counter()
        out = chunk(self, row, tokens, *more)
        spent[kind].append((len(tokens), time.perf_counter() - began))
        return out

    def timed_step(self: Cache, tokens: Any, active: Any) -> Any:
        began = time.perf_counter()
        out = step(self, tokens, active)
        spent["step"].append((int(np.count_nonzero(active)), time.perf_counter() - began))
        return out

    Cache.chunk, Cache.step = timed_chunk, timed_step  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        Cache.chunk, Cache.step = chunk, step  # type: ignore[method-assign]


def write(ours: Ours, book: Book, adapters: Sequence[Adapter | None], turn: int) -> float:
    """Mails a second from the first one asked for to the last one finished."""
    words, engine = ours.model.words, Engine(ours.model, ROWS)
    try:
        asked = []
        began = time.perf_counter()
        for number, (cluster, p) in enumerate(prompts(book, MAILS)):
            walk = functools.partial(
                Guided, words, book, p.trigger, p.tone, frozenset(p.slots), p.goods, p.situation, seed=turn * MAILS + number
            )
            head = len(words.encode(shared(p)))
            asked.append(engine.submit(Request(words.encode(render(p)), walk, adapters[cluster], shared=head)))
        for future in asked:
            future.result()
        return MAILS / (time.perf_counter() - began)
    finally:
        engine.close()


def shares(spent: Spent) -> str:
    """Where the graph's time went: share, and milliseconds a call and a token."""
    whole = sum(seconds for calls in spent.values() for _, seconds in calls) or 1.0
    said = []
    for kind, calls in spent.items():
        tokens, seconds = sum(n for n, _ in calls), sum(s for _, s in calls)
        per = statistics.median(s for _, s in calls) * 1000 if calls else 0.0
        said.append(f"{kind} {seconds / whole:.0%} ({per:.0f} ms a call, {1000 * seconds / max(tokens, 1):.1f} a token)")
    return ", ".join(said)


@benchmark("writer_mails")
def writer_mails(home: Path, runs: int) -> list[Row]:
    """With an adapter for each of five clusters, and with none; the peer is the rate that was asked for."""
    ours, book, made = Ours(material(home.absolute())), Book.load(), []
    kinds: tuple[tuple[str, list[Adapter | None]], ...] = (
        ("writer_mails", [*ours.adapters[:CLUSTERS]]),
        ("writer_mails_without_adapters", [None] * CLUSTERS),
    )
    found: dict[str, list[float]] = {name: [] for name, _ in kinds}
    said: dict[str, str] = {}
    for turn in range(runs):
        for name, adapters in kinds:
            with watched() as spent:
                found[name].append(write(ours, book, adapters, turn))
            said[name] = shares(spent)
    load = f"load {os.getloadavg()[0]:.1f}"
    for name, rates in found.items():
        note = f"{MAILS} mails, {min(rates):.2f}-{max(rates):.2f}; {said[name]}; {load}"
        made.append(Row(name, statistics.median(rates), GOAL, "mails/s", runs, "the goal", note=note))
    return made
