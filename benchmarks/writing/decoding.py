"""What every writer's peer is given: the same prompts, an adapter a row, the same number of tokens; and our own side of it."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from models.phrasebook.book import Book
from models.writer import Adapter, Base, Cache, Model, adapters, export_hf, fingerprint, load, locate, prepare
from models.writer.base import LINEARS
from models.writer.graph import GROUPS, wide
from models.writer.prompt import Prompt, render

PROMPT, RANK, ADAPTERS = 120, 8, 32
NEW = int(os.environ.get("BENCH_NEW_TOKENS", "40"))


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second over all rows: of the steps alone, and with the prompts."""

    decode: float
    whole: float


@dataclass(frozen=True, slots=True)
class DecodingLane:
    """Some of the rows, by number, in a cache of their own."""

    cache: Cache
    rows: range


def speed(rows: int, steps: float, whole: float) -> Speed:
    """``steps`` seconds for all new tokens but the first, ``whole`` seconds for prompts and all."""
    return Speed(rows * (NEW - 1) / steps, rows * NEW / whole)


def material(home: Path) -> Path:
    """A folder with the base for transformers, 32 random adapters and the prompts' tokens; made once for each base and house adapter."""
    folder = home / "writer" / fingerprint(locate())[:12]
    if (folder / "prompts.json").is_file():
        return folder
    base = load(locate())
    export_hf(base, folder / "base")
    for seed in range(ADAPTERS):
        _adapter(folder / f"adapter-{seed}.safetensors", base, seed)
    (folder / "prompts.json").write_text(json.dumps(_prompts(base)))
    return folder


def _adapter(file: Path, base: Base, seed: int) -> None:
    """As a refit leaves it in form and size; small random values."""
    rng, s = np.random.default_rng(seed), base.shape
    sizes = {member: (out, wide(s, g)[0]) for g, members in GROUPS for member, out in zip(members, wide(s, g)[1], strict=True)}
    tensors = {}
    for layer in range(s.layers):
        for name in LINEARS:
            at, (out, into) = f"base_model.model.model.layers.{layer}.{name}", sizes[name]
            tensors[f"{at}.lora_A.weight"] = rng.normal(0, 0.02, (RANK, into)).astype(np.float32)
            tensors[f"{at}.lora_B.weight"] = rng.normal(0, 0.01, (out, RANK)).astype(np.float32)
    save_file(tensors, str(file), {"base_sha256": base.sha256, "rank": str(RANK), "alpha": str(2 * RANK)})


def _prompts(base: Base) -> list[list[int]]:
    """``PROMPT`` tokens each: a prompt of the product's and mails of that trigger after it."""
    book, made = Book.load(), []
    for number, trigger in enumerate(islice(cycle(book.triggers), ADAPTERS)):
        prompt = Prompt(
            trigger, ("warm", "crisp", "playful")[number % 3], "en", "a small basket every 6 days", "bakery", (), ("product_1",)
        )
        text = render(prompt) + " ".join(clause.text for clause in book.chapter(trigger).clauses)
        made.append(base.tokenizer.encode(text, add_special_tokens=False).ids[:PROMPT])
    return made


class Ours:
    """The writer's own graph, greedy: each row's prompt by itself, then steps of all rows of a lane and the vocabulary's head."""

    def __init__(self, folder: Path, precision: Literal["int8", "fp32"] = "int8", lanes: int = 0) -> None:
        self.model = Model(prepare(locate(), folder / "graph", precision, RANK), lanes=lanes)
        self.prompts: list[list[int]] = json.loads((folder / "prompts.json").read_text())
        files = (folder / f"adapter-{seed}.safetensors" for seed in range(ADAPTERS))
        self.adapters: list[Adapter] = [adapters.read(file, self.model.shape, self.model.base_sha256, RANK) for file in files]

    def run(self, rows: int) -> Speed:
        lanes = self.lanes(rows)
        with ThreadPoolExecutor(len(lanes)) as pool:
            started = time.perf_counter()
            tokens = list(pool.map(self.read, lanes))
            first = time.perf_counter()
            list(pool.map(self.write, lanes, tokens))
            ended = time.perf_counter()
        return speed(rows, ended - first, ended - started)

    def lanes(self, rows: int) -> list[DecodingLane]:
        """As the engine deals rows out, each with its adapter."""
        count = min(self.model.lanes, rows)
        made = [DecodingLane(Cache(self.model, len(range(lane, rows, count))), range(lane, rows, count)) for lane in range(count)]
        for lane in made:
            for place, row in enumerate(lane.rows):
                lane.cache.adapt(place, self.adapters[row])
        self.model.best(np.zeros((1, self.model.shape.width), np.float32))  # the head is loaded on first use
        return made

    def read(self, lane: DecodingLane) -> NDArray[np.int64]:
        """The prompts; the first new token of each row."""
        hidden = np.stack([lane.cache.chunk(place, self.prompts[row]) for place, row in enumerate(lane.rows)])
        return self.model.best(hidden)[0][:, 0]

    def write(self, lane: DecodingLane, tokens: NDArray[np.int64]) -> None:
        """The other new tokens."""
        active = np.ones(len(lane.rows), bool)
        for _ in range(NEW - 1):
            tokens = self.model.best(lane.cache.step(tokens, active))[0][:, 0]
