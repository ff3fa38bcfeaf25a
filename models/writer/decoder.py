"""A built graph opened, and the KV cache of some rows with an adapter each.

A lane is a thread that runs the graph by itself. Two rows on two lanes were
measured 1.4 times as fast as one after the other on two threads, whose nodes
wait for one another some 700 times a run; and nothing waits where a core is
another process's just then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.writer.adapters import Adapter
from models.writer.automaton import Vocabulary, ban
from models.writer.base import Shape
from models.writer.graph import GROUPS, read_meta, wide
from schemas.errors import ModelError

LANES = 4  # at most: each reads all the weights for its own rows, and memory is no faster for more cores


class Model:
    """A built graph with its tokenizer; its methods may be called from several threads.

    ``threads`` 0: one for each core. ``lanes`` 0: as many runs at once as make the most of them. ``session`` runs the decoder,
    ``plain`` and the head, made when first wanted, rows without an adapter and the vocabulary.
    """

    def __init__(self, folder: Path, threads: int = 0, lanes: int = 0) -> None:
        meta = read_meta(folder)
        if meta["precision"] in ("fp16", "bf16"):
            raise ModelError(
                f"{folder}: a {meta['precision']} graph is for CUDA, which this engine doesn't drive yet: set writer.device to cpu"
            )
        self.folder = folder
        threads = threads or os.cpu_count() or 1
        self.lanes = lanes or min(threads, LANES)
        self._each = max(1, threads // self.lanes)
        self.shape = Shape(**meta["shape"])
        self.base_sha256: str = meta["base_sha256"]
        self.rank: int = meta["rank"]
        self.max_len: int = meta["max_len"]
        self.output: NDArray[np.float32] = np.load(folder / "output.npy", mmap_mode="r")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.words = Vocabulary(self.tokenizer, self.shape.eos)
        self.session = self._open("model")
        self._opening = threading.Lock()
        self._opened: dict[str, Any] = {}
        known = ban(self.words)
        self._ban = np.pad(known, (0, max(0, self.shape.vocab - len(known))), constant_values=-1e9)[: self.shape.vocab]

    def _open(self, name: str) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._each
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

    def _once(self, name: str) -> Any:
        with self._opening:
            if name not in self._opened:
                self._opened[name] = self._open(name)
            return self._opened[name]

    @property
    def plain(self) -> Any:
        """The decoder for rows without an adapter."""
        return self._once("plain")

    def best(self, hidden: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and logits of the best tokens that aren't banned, for rows of ``hidden``."""
        values, ids = self._once("head").run(None, {"hidden": np.ascontiguousarray(hidden), "ban": self._ban})
        return ids, values


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
