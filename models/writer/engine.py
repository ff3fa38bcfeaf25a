"""Continuous batching on the CPU: B rows of one KV cache, each with its own adapter, filled anew as soon as they are free.

One thread owns session, cache and rows; ``submit`` may be called from any
thread. A step always runs all rows and a long forced stretch always goes as
one chunk of its row, so that a mail's text depends on its seed, not on which
mails stood beside it.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.writer.adapters import Adapter
from models.writer.automaton import Walk, Words, Written, ban
from models.writer.base import Shape
from models.writer.graph import GROUPS, read_meta, wide
from schemas.errors import ModelError

CHUNK = 6  # forced tokens from which one chunk of a row (about 6 + 0.5 n ms) beats n shared steps
PREFIXES = 48  # beginnings of mails whose KV is kept, some 1-2 MB each, for the next mail that begins the same way


class Model:
    """A built graph with its tokenizer. ``session`` runs the decoder, ``head`` (made when first wanted) the vocabulary."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        meta = read_meta(folder)
        if meta["precision"] in ("fp16", "bf16"):
            raise ModelError(
                f"{folder}: a {meta['precision']} graph is for CUDA, which this engine doesn't drive yet: set writer.device to cpu"
            )
        self.folder, self.threads = folder, threads
        self.shape = Shape(**meta["shape"])
        self.base_sha256: str = meta["base_sha256"]
        self.rank: int = meta["rank"]
        self.max_len: int = meta["max_len"]
        self.output: NDArray[np.float32] = np.load(folder / "output.npy", mmap_mode="r")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.words = Words(self.tokenizer, self.shape.eos)
        self.session = self._open("model")
        self._head: Any = None
        self._plain: Any = None
        self._ban: NDArray[np.float32] | None = None

    def _open(self, name: str) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The writer shares its cores with intake, Kafka and the sender: threads that spin while they wait halve its speed there.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return ort.InferenceSession(str(self.folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base for its errors
            raise ModelError(
                f"{self.folder}: onnxruntime can't load {name}.onnx ({error}): remove the folder, it is built again"
            ) from error

    @property
    def plain(self) -> Any:
        """The decoder for rows without an adapter, opened when first wanted."""
        self._plain = self._plain or self._open("plain")
        return self._plain

    def best(self, hidden: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and logits of the best tokens that aren't banned, for rows of ``hidden``."""
        if self._head is None:
            self._head, self._ban = self._open("head"), ban(self.words)
            self._ban = np.pad(self._ban, (0, max(0, self.shape.vocab - len(self._ban))), constant_values=-1e9)[: self.shape.vocab]
        values, ids = self._head.run(None, {"hidden": np.ascontiguousarray(hidden), "ban": self._ban})
        return ids, values


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
    """``tokens`` of finished texts; ``busy`` seconds in which the engine had work."""

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


class Cache:
    """KV and adapters of B rows, and the two ways to run them: all rows by one token, one row by many."""

    def __init__(self, model: Model, rows: int) -> None:
        s = model.shape
        self.model, self.rows = model, rows
        self.kv = np.zeros((2 * s.layers, rows, s.kv_heads, model.max_len, s.head), np.float32)
        self.length = np.zeros(rows, np.int64)
        self._a: list[NDArray[np.float32]] = []
        self._b: list[NDArray[np.float32]] = []
        for _ in range(s.layers):
            for group, members in GROUPS:
                into, outs = wide(s, group)
                self._a.append(np.zeros((rows, into, model.rank * len(members)), np.float32))
                self._b.append(np.zeros((rows, model.rank * len(members), sum(outs)), np.float32))
        self._holds: list[Adapter | None] = [None] * rows
        self._bound: dict[tuple[int, int, bool], Any] = {}
        self._live: dict[tuple[int, int, bool], list[NDArray[Any]]] = {}

    def adapt(self, row: int, adapter: Adapter | None) -> None:
        """Put an adapter (or none) into a row, unless it holds it already."""
        if self._holds[row] is adapter:
            return
        for site, (a, b) in enumerate(zip(self._a, self._b, strict=True)):
            a[row] = adapter.a[site] if adapter else 0.0
            b[row] = adapter.b[site] if adapter else 0.0
        self._holds[row] = adapter

    def chunk(self, row: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens to one row; ``hidden`` f32[width] at the last of them. Raises ModelError where they don't fit."""
        start, n = int(self.length[row]), len(tokens)
        if start + n > self.model.max_len:
            raise ModelError(f"a mail and its prompt are longer than {self.model.max_len} tokens: shorten the clauses, or take fewer")
        out = self._run(row, row + 1, np.array([tokens], np.int64), np.array([start + n - 1], np.int32))
        self.length[row] += n
        return out[0]

    def step(self, tokens: NDArray[np.int64], active: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Feed one token to every active row; ``hidden`` f32[rows,width], of use for active rows."""
        if (self.length[active] >= self.model.max_len).any():
            raise ModelError(f"a mail and its prompt are longer than {self.model.max_len} tokens: shorten the clauses, or take fewer")
        # A row that rests is fed a token too, but beyond its end, where the next real one overwrites it.
        at = np.minimum(self.length, self.model.max_len - 1).astype(np.int32)
        out = self._run(0, self.rows, tokens.reshape(-1, 1), at)
        self.length += active
        return out

    def _run(self, first: int, last: int, ids: NDArray[np.int64], seqlens: NDArray[np.int32]) -> NDArray[np.float32]:
        rows, n = ids.shape
        plain = not any(self._holds[first:last])
        key = (first, last, plain)
        binding = self._bound.get(key) or self._bind(*key)
        total = np.array(int(seqlens.max()) + 1, np.int32)
        where = np.full((rows, 1), n - 1, np.int64)
        hidden = np.empty((rows, self.model.shape.width), np.float32)
        self._live[key] = [ids, seqlens, total, where, hidden]  # the binding holds addresses, not references
        for name, value in (("input_ids", ids), ("seqlens_k", seqlens), ("total", total), ("last", where)):
            binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        binding.bind_output("hidden", "cpu", 0, np.float32, hidden.shape, hidden.ctypes.data)
        (self.model.plain if plain else self.model.session).run_with_iobinding(binding)
        return hidden

    def _bind(self, first: int, last: int, plain: bool) -> Any:
        """Everything that stays: cache and adapters of these rows. Whole ranges only, so that each slice is contiguous."""
        binding = (self.model.plain if plain else self.model.session).io_binding()
        for layer in range(self.model.shape.layers):
            for i, name in enumerate("kv"):
                part = self.kv[2 * layer + i, first:last]
                binding.bind_input(f"past.{layer}.{name}", "cpu", 0, np.float32, part.shape, part.ctypes.data)
                binding.bind_output(f"present.{layer}.{name}", "cpu", 0, np.float32, part.shape, part.ctypes.data)
            for g, (group, _) in enumerate(() if plain else GROUPS):
                for letter, arrays in (("A", self._a), ("B", self._b)):
                    part = arrays[4 * layer + g][first:last]
                    binding.bind_input(f"{letter}.{layer}.{group}", "cpu", 0, np.float32, part.shape, part.ctypes.data)
        self._bound[first, last, plain] = binding
        return binding


class Engine:
    """``submit`` mails, get futures. Close it when done: mails not yet finished are cancelled."""

    def __init__(self, model: Model, rows: int = 16) -> None:
        self.model, self.counters = model, Counters()
        self._cache = Cache(model, rows)
        self._rows: list[_Row | None] = [None] * rows
        self._queue: list[tuple[int, int, Request, Future[Written]]] = []
        self._order = itertools.count()
        self._prefixes: OrderedDict[tuple[str, tuple[int, ...]], tuple[NDArray[np.float32], NDArray[np.float32]]] = OrderedDict()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="writer-engine", daemon=True)
        self._thread.start()

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
    def rows(self) -> int:
        """Mails written at once."""
        return len(self._rows)

    @property
    def queued(self) -> int:
        """Mails waiting or being written."""
        return len(self._queue) + sum(row is not None for row in self._rows)

    @property
    def seconds_a_mail(self) -> float:
        """Measured so far; a guess before the first."""
        c = self.counters
        # Early on, the time of the mails still in the rows would be laid on the few that are finished.
        return c.busy / c.mails if c.mails >= 2 * len(self._rows) else 0.3

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._closing and not self._queue and not any(self._rows):
                    self._wake.wait()
                if self._closing:
                    break
            started = time.perf_counter()
            try:
                self._admit()
                self._chunks()
                self._step()
            except Exception as error:  # one mail's fault must not end the thread: those in flight fail, the next go on
                self._fail(error)
            self.counters.busy += time.perf_counter() - started
        for _, _, _, future in self._queue:
            future.cancel()
        for row in self._rows:
            if row is not None:
                row.future.set_exception(ModelError("the writer's engine was closed while it wrote: the intent is written again"))

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
            with self._wake:
                if not self._queue:
                    return
                _, _, request, future = heapq.heappop(self._queue)
            if not future.set_running_or_notify_cancel():
                continue
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
        known = self._prefixes.get((adapter, tuple(tokens)))
        if known is None:
            return None
        self._prefixes.move_to_end((adapter, tuple(tokens)))
        self.counters.prefix_hits += 1
        self._cache.kv[:, row, :, : len(tokens)] = known[0]
        self._cache.length[row] = len(tokens)
        return known[1]

    def _remember(self, row: int, adapter: str, tokens: list[int], hidden: NDArray[np.float32]) -> None:
        self._prefixes[adapter, tuple(tokens)] = (self._cache.kv[:, row, :, : len(tokens)].copy(), hidden.copy())
        if len(self._prefixes) > PREFIXES:
            self._prefixes.popitem(last=False)

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
            logits = np.asarray(self.model.output[ids], np.float32) @ hidden
            if walk.whole:
                best, values = self.model.best(hidden[None])
                ids, logits = np.concatenate([best[0], ids]), np.concatenate([values[0], logits])
            row.pending = list(walk.take(ids, logits))
        if walk.finished:
            self._rows[index] = None
            self._cache.length[index] = 0
            written = walk.written()
            self.counters.tokens += written.tokens
            self.counters.mails += 1
            row.future.set_result(written)
