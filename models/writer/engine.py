"""Continuous batching on the CPU: rows of a KV cache, each with its own adapter, filled anew as soon as they are free.

The rows are dealt out to lanes, each a thread with a cache of its own;
``submit`` may be called from any thread. A step always runs all rows of its
lane and a long forced stretch always goes as one chunk of its row, so that a
mail's text depends on its seed, not on which mails stood beside it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import astuple, dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.writer.adapters import Adapter
from models.writer.automaton import Walk, Written
from models.writer.decoder import Cache, Model
from schemas.errors import ModelError

CHUNK = 6  # forced tokens from which one chunk of a row (about 10 + 1.7 n ms) beats n shared steps
POLITE = 5  # niceness: a release, a timer or a mail to send need a core for milliseconds and should not wait for a run's end
PREFIXES = 48  # beginnings of mails whose KV is kept, some 1-2 MB each, for the next mail that begins the same way


@dataclass(slots=True)
class Request:
    """One mail to write. ``adapter`` None: the base alone. Lower ``priority`` first.

    ``shared``: so many of the prompt's tokens many prompts begin with, so that they are computed once.
    """

    prompt: Sequence[int]
    walk: Callable[[], Walk]
    adapter: Adapter | None = None
    priority: int = 5
    shared: int = 0


@dataclass(slots=True)
class Counters:
    """``tokens`` of finished texts; ``busy`` seconds in which the engine had work, whichever its lanes."""

    tokens: int = 0
    mails: int = 0
    busy: float = 0.0
    steps: int = 0
    chunks: int = 0
    prefix_hits: int = 0

    @property
    def runs(self) -> int:
        """How often the model ran: grows as long as it gets on."""
        return self.steps + self.chunks


@dataclass(slots=True)
class _Row:
    walk: Walk
    future: Future[Written]
    pending: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a row holds after a beginning: keys and values f32[2*layers,kv,tokens,head], and ``hidden`` at its last token."""

    kv: NDArray[np.float32]
    hidden: NDArray[np.float32]


class _Prefixes:
    """The beginnings met last, by adapter and tokens, for all lanes."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, tuple[int, ...]], _Known] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, adapter: str, tokens: Sequence[int]) -> _Known | None:
        with self._lock:
            found = self._known.get((adapter, tuple(tokens)))
            if found is not None:
                self._known.move_to_end((adapter, tuple(tokens)))
            return found

    def put(self, adapter: str, tokens: Sequence[int], known: _Known) -> None:
        with self._lock:
            self._known[adapter, tuple(tokens)] = known
            if len(self._known) > PREFIXES:
                self._known.popitem(last=False)


class Engine:
    """``submit`` mails, get futures. Close it when done: mails not yet finished are cancelled."""

    def __init__(self, model: Model, rows: int = 16) -> None:
        self.model, self.rows = model, rows  # ``rows``: mails written at once
        self._queue: list[tuple[int, int, Request, Future[Written]]] = []
        self._order = itertools.count()
        self.prefixes = _Prefixes()
        self._wake = threading.Condition()
        self._closing = False
        count = min(model.lanes, rows)
        self._lanes = [_Lane(self, Cache(model, len(range(lane, rows, count)))) for lane in range(count)]
        for lane in self._lanes:
            lane.thread.start()

    def submit(self, request: Request) -> Future[Written]:
        """Queue a mail. The future raises ModelError where the model can't write it."""
        future: Future[Written] = Future()
        with self._wake:
            if self._closing:
                raise ModelError("the writer's engine is closed: start it again")
            heapq.heappush(self._queue, (request.priority, next(self._order), request, future))
            self._wake.notify()
        return future

    @property
    def counters(self) -> Counters:
        """Since the start."""
        return Counters(*map(sum, zip(*(astuple(lane.counters) for lane in self._lanes), strict=True)))

    @property
    def queued(self) -> int:
        """Mails waiting or being written."""
        return len(self._queue) + sum(lane.held for lane in self._lanes)

    @property
    def seconds_a_mail(self) -> float:
        """Measured so far; a guess before the first."""
        c = self.counters
        # Early on, the time of the mails still in the rows would be laid on the few that are finished.
        return c.busy / c.mails if c.mails >= 2 * self.rows else 0.3

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        for lane in self._lanes:
            lane.thread.join()
        for _, _, _, future in self._queue:
            future.cancel()

    def awaited(self, lane: _Lane) -> bool:
        """Block until there is work for this lane; False when the engine is closed."""
        with self._wake:
            while not self._closing and not self._queue and not lane.held:
                lane.working = False
                self._wake.wait()
            lane.working = True
            return not self._closing

    def next(self) -> tuple[Request, Future[Written]] | None:
        """The most urgent mail that still wants to be written."""
        with self._wake:
            while self._queue:
                _, _, request, future = heapq.heappop(self._queue)
                if future.set_running_or_notify_cancel():
                    return request, future
        return None

    def working(self) -> int:
        """Lanes that have work."""
        return sum(lane.working for lane in self._lanes) or 1


class _Lane:
    """Some of the rows, and the thread that writes them."""

    def __init__(self, engine: Engine, cache: Cache) -> None:
        self.engine, self.counters, self.working = engine, Counters(), False
        self._model, self._cache = engine.model, cache
        self._rows: list[_Row | None] = [None] * cache.rows
        self.thread = threading.Thread(target=self._loop, name="writer-engine", daemon=True)

    @property
    def held(self) -> int:
        """Mails being written here."""
        return sum(row is not None for row in self._rows)

    def _loop(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux alone gives a thread a priority of its own
            os.setpriority(os.PRIO_PROCESS, 0, max(POLITE, os.getpriority(os.PRIO_PROCESS, 0)))  # 0: this thread
        while self.engine.awaited(self):
            started = time.perf_counter()
            try:
                self._admit()
                self._chunks()
                self._step()
            except Exception as error:  # one mail's fault must not end the thread: those in flight fail, the next go on
                self._fail(error)
            self.counters.busy += (time.perf_counter() - started) / self.engine.working()
        self._fail(ModelError("the writer's engine was closed while it wrote: the intent is written again"))

    def _fail(self, error: Exception) -> None:
        known = error if isinstance(error, ModelError) else ModelError(f"the writer's engine failed ({error!r}): see the log")
        for index, row in enumerate(self._rows):
            if row is not None:
                self._rows[index] = None
                row.future.set_exception(known)

    def _admit(self) -> None:
        for index, row in enumerate(self._rows):
            if row is not None:
                continue
            if (found := self.engine.next()) is None:
                return
            request, future = found
            try:
                made = _Row(request.walk(), future)
                hidden = self._prefix(index, request, [*request.prompt, *made.walk.start()])
            except Exception as error:
                future.set_exception(error if isinstance(error, ModelError) else ModelError(f"a mail can't be begun ({error!r})"))
                continue
            self._rows[index] = made
            self._advance(index, hidden)

    def _prefix(self, row: int, request: Request, tokens: list[int]) -> NDArray[np.float32]:
        """Prompt and forced beginning into the row: computed, or copied from the last mail that began the same way.

        What is shared and the rest are always two chunks, so that a text doesn't depend on what was known.
        """
        self._cache.adapt(row, request.adapter)
        self._cache.length[row] = 0
        name = request.adapter.sha256 if request.adapter else ""
        known = self._recall(row, name, tokens)
        if known is not None:
            return known
        if request.shared and self._recall(row, name, tokens[: request.shared]) is None:
            self._remember(row, name, tokens[: request.shared], self._cache.chunk(row, tokens[: request.shared]))
        hidden = self._cache.chunk(row, tokens[request.shared :])
        self._remember(row, name, tokens, hidden)
        return hidden

    def _recall(self, row: int, adapter: str, tokens: list[int]) -> NDArray[np.float32] | None:
        known = self.engine.prefixes.get(adapter, tokens)
        if known is None:
            return None
        self.counters.prefix_hits += 1
        self._cache.kv[:, row, :, : len(tokens)] = known.kv
        self._cache.length[row] = len(tokens)
        return known.hidden

    def _remember(self, row: int, adapter: str, tokens: list[int], hidden: NDArray[np.float32]) -> None:
        self.engine.prefixes.put(adapter, tokens, _Known(self._cache.kv[:, row, :, : len(tokens)].copy(), hidden.copy()))

    def _chunks(self) -> None:
        for index, row in enumerate(self._rows):
            while (row := self._rows[index]) is not None and len(row.pending) >= CHUNK:
                self.counters.chunks += 1
                self._advance(index, self._cache.chunk(index, row.pending))

    def _step(self) -> None:
        active = np.array([row is not None for row in self._rows])
        if not active.any():
            return
        tokens = np.array([row.pending[0] if row else 0 for row in self._rows], np.int64)
        hidden = self._cache.step(tokens, active)
        self.counters.steps += 1
        for index, row in enumerate(self._rows):
            if row is not None:
                del row.pending[0]
                if not row.pending:
                    self._advance(index, hidden[index])

    def _advance(self, index: int, hidden: NDArray[np.float32]) -> None:
        """Let the walk choose until it has tokens to feed, or is finished and its row free."""
        row = self._rows[index]
        assert row is not None
        row.pending = []
        walk = row.walk
        while not walk.finished and not row.pending:
            ids = walk.wants
            logits = np.asarray(self._model.output[ids], np.float32) @ hidden
            if walk.whole:
                best, values = self._model.best(hidden[None])
                ids, logits = np.concatenate([best[0], ids]), np.concatenate([values[0], logits])
            row.pending = list(walk.take(ids, logits))
        if walk.finished:
            self._rows[index] = None
            self._cache.length[index] = 0
            written = walk.written()
            self.counters.tokens += written.tokens
            self.counters.mails += 1
            row.future.set_result(written)
