"""What a model for each cluster costs: a mixed batch, a swap of releases under load, memory for many clusters, one refit."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import msgspec
import psutil

from benchmarks import Row, benchmark
from benchmarks.writing.decoding import ADAPTERS, NEW, PROMPT, RANK, Ours, material
from models.phrasebook.book import Book
from models.phrasebook.sample import drafts
from models.writer import Engine, Guided, Request
from models.writer.prompt import Prompt, render
from schemas.config import Settings
from schemas.release import Release
from streams.writer.releases import Releases
from training.feedback.examples import ExampleRow as Example
from training.refit.refit import Refit, open_bench

ROWS, CLUSTERS, SWAPS = 16, 64, 20
REFIT_LIMIT, SWAP_LIMIT = 300.0, 50.0  # seconds; ms
PLACE = Prompt("welcome", "warm", "en", "", "general", (), ())


@benchmark("mixed_batch")
def mixed_batch(home: Path, runs: int) -> list[Row]:
    """Sixteen mails of sixteen clusters in one batch, against one run for each cluster (what a graph without row-wise adapters needs)."""
    ours, one = Ours(material(home)), Ours(material(home), lanes=1)
    mixed, turns, pairs = [], [], []
    for _ in range(runs):
        mixed.append(ours.run(ROWS).decode)
        turns.append(_one_by_one(one))
        pairs.append(_one_by_one(ours))
    said = f"{PROMPT} + {NEW} tokens, greedy, int8; runs"
    made = []
    for name, peer, against in (
        ("mixed_batch", turns, "one run per cluster, all cores a run"),
        ("mixed_batch_vs_lanes", pairs, "one run per cluster, one core a run"),
    ):
        note = f"{said} {', '.join(f'{m:.0f}/{p:.0f}' for m, p in zip(mixed, peer, strict=True))}"
        made.append(Row(name, statistics.median(mixed), statistics.median(peer), "tokens/s", runs, against, note=note))
    return made


def _one_by_one(ours: Ours) -> float:
    """Tokens a second of the steps alone, one row at a time in each lane; a quarter of the clusters is enough to know."""
    took, some = 0.0, 0
    while some < ROWS // 4:
        lanes = ours.lanes(ours.model.lanes)
        with ThreadPoolExecutor(len(lanes)) as pool:
            tokens = list(pool.map(ours.read, lanes))
            started = time.perf_counter()
            list(pool.map(ours.write, lanes, tokens))
            took += time.perf_counter() - started
        some += len(lanes)
    return some * (NEW - 1) / took


@benchmark("release_swap")
def release_swap(home: Path, runs: int) -> list[Row]:
    """From the record to the first mail that gets the new adapter, while sixteen rows write; every request must be answered."""
    folder = material(home)
    ours, book = Ours(folder), Book.load()
    engine = Engine(ours.model, ROWS)
    with tempfile.TemporaryDirectory(dir=home) as fresh:
        releases = Releases(Settings(home=fresh), ours.model.shape, ours.model.base_sha256, RANK)
        records = [_record(folder, ours, n) for n in range(SWAPS)]
        with _writing(engine, book, releases) as told:
            _until(lambda: told["written"] > ROWS)
            took = []
            for record in records:
                started = time.perf_counter()
                if not releases.apply(record):
                    raise RuntimeError("a good release was refused")
                took.append((time.perf_counter() - started) * 1000)
                written = told["written"]
                _until(lambda: told["written"] > written)  # noqa: B023 called at once
        engine.close()
    note = (
        f"{SWAPS} swaps, {told['written']} mails written meanwhile, {told['failed']} failed; "
        f"median of reading, verifying and swapping; slowest {max(took):.0f} ms; limit {SWAP_LIMIT:.0f} ms"
    )
    return [Row("release_swap", statistics.median(took), SWAP_LIMIT, "ms", SWAPS, "the limit", "lower", note)]


def _record(folder: Path, ours: Ours, number: int) -> bytes:
    file = folder / f"adapter-{number % ADAPTERS}.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return msgspec.json.encode(Release(f"r{number}", "c1", number + 1, str(file.resolve()), digest, ours.model.base_sha256, RANK, ""))


@contextmanager
def _writing(engine: Engine, book: Book, releases: Releases) -> Iterator[dict[str, int]]:
    """Requests without a pause, each with the adapter that serves when it begins."""
    told, stop = {"written": 0, "failed": 0}, threading.Event()
    prompt = engine.model.words.encode(render(PLACE))

    def write(lane: int) -> None:
        number = lane
        while not stop.is_set():
            number += ROWS
            _, adapter = releases.choose("c1", f"i{number}")

            def walk(seed: int = number) -> Guided:
                return Guided(engine.model.words, book, PLACE.trigger, PLACE.tone, (), PLACE.goods, (), seed=seed)

            try:
                engine.submit(Request(prompt, walk, adapter)).result(120)
                told["written"] += 1
            except Exception:
                told["failed"] += 1

    lanes = [threading.Thread(target=write, args=(lane,)) for lane in range(ROWS)]
    for lane in lanes:
        lane.start()
    try:
        yield told
    finally:
        stop.set()
        for lane in lanes:
            lane.join()


def _until(done: object, within: float = 120.0) -> None:
    end = time.monotonic() + within
    while not done():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError("no mail was written")
        time.sleep(0.001)


@benchmark("adapters_64")
def adapters_64(home: Path, runs: int) -> list[Row]:
    """Resident memory that 64 clusters' adapters add to a writer."""
    folder = material(home)
    ours = Ours(folder)
    process = psutil.Process()
    with tempfile.TemporaryDirectory(dir=home) as fresh:
        releases = Releases(Settings(home=fresh), ours.model.shape, ours.model.base_sha256, RANK)
        before = process.memory_info().rss
        for number in range(CLUSTERS):
            record = msgspec.json.decode(_record(folder, ours, number), type=Release)
            if not releases.apply(msgspec.json.encode(msgspec.structs.replace(record, cluster=f"c{number}"))):
                raise RuntimeError("a good release was refused")
        grown = (process.memory_info().rss - before) / 2**20
    note = f"{grown / CLUSTERS:.1f} MiB each at rank {RANK}, laid out as the graph wants them"
    return [Row("adapters_64", grown, None, "MiB", note=note)]


@benchmark("refit")
def refit(home: Path, runs: int) -> list[Row]:
    """One cluster's first refit at the default settings on two threads: plan, fit, gate, artifact; 64 whole mails of the phrase book."""
    with tempfile.TemporaryDirectory(dir=home) as fresh:
        settings = Settings(home=fresh)
        bench = open_bench(settings, Path(fresh), 2)
        started = time.perf_counter()
        steps: list[float] = []
        judged, release = Refit(settings, Path(fresh), "c1").run(
            bench, _examples(settings.training.min_examples), [], None, lambda _name, _number, _of, loss: steps.append(loss)
        )
        seconds = time.perf_counter() - started
    figures = judged.metrics
    note = (
        f"{len(steps)} steps, {seconds / len(steps):.1f} s each with all else; held-out gain {figures['held_out_gain']:.2f} nats a token, "
        f"gate: {'passed' if release else '; '.join(judged.failed)}; limit {REFIT_LIMIT:.0f} s"
    )
    return [Row("refit", seconds, REFIT_LIMIT, "s", 1, "the limit", "lower", note)]


def _examples(count: int) -> list[Example]:
    book, made = Book.load(), []
    for number, trigger in enumerate(islice(cycle(book.triggers), count)):
        tone = ("warm", "crisp", "playful")[number % 3]
        text = drafts(book, trigger, tone, 1, number)[0]
        prompt = render(Prompt(trigger, tone, "en", "a small basket", "general", (), ()))
        made.append(Example(f"i{number}", "c1", trigger, tone, prompt, text, 1.0, 0.0, float(number)))
    return made
