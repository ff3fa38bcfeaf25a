"""The very file that would be published, in the very graph that would serve it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.mail.guard import check, passes
from models.mail.slots import ALWAYS, slots_in
from models.phrasebook.book import Book
from models.writer import adapters, base, graph
from models.writer.automaton import Guided, Written
from models.writer.decoder import Model
from models.writer.engine import Engine, Request
from schemas.config import Settings
from training.feedback.examples import ExampleRow

MAILS = 12  # sampled for the guard and for variety
SLOT_RULES = ("slots", "braces", "roles")  # the guard's, about what stands in braces and where
SCORED = 6  # rows whose loss is compared between torch and the graph


@dataclass
class Forced:
    """A walk that writes a given text and adds up its negative log-likelihood (nats)."""

    ids: Sequence[int]
    vocabulary: int
    nll: float = 0.0
    finished: bool = False
    whole: bool = False
    wants: NDArray[np.int64] = field(init=False)
    at: int = 0

    def __post_init__(self) -> None:
        self.wants = np.arange(self.vocabulary)

    def start(self) -> list[int]:
        """Nothing is given."""
        return []

    def take(self, ids: NDArray[np.int64], logits: NDArray[np.float32]) -> list[int]:
        """Account for the next token of the text, and feed it."""
        wide = logits.astype(np.float64)
        peak = wide.max()
        self.nll += float(np.log(np.exp(wide - peak).sum()) + peak - wide[self.ids[self.at]])
        self.at += 1
        self.finished = self.at == len(self.ids)
        return [] if self.finished else [int(self.ids[self.at - 1])]

    def written(self) -> Written:
        """The mean loss a token is the score."""
        return Written("", (), self.nll / len(self.ids), 0.0, len(self.ids))


@dataclass(frozen=True, slots=True)
class Sampled:
    """Shares of sampled mails, in [0, 1]. ``distinct_2``: of their word pairs (Li et al. 2016, arXiv 1510.03055)."""

    guard_pass: float
    slots_valid: float
    harmful: float
    distinct: float
    distinct_2: float


def sampled(texts: Sequence[str], verdicts: Sequence[Mapping[str, str]]) -> Sampled:
    """The figures of some texts and of the guard's verdicts on them."""
    pairs = [pair for text in texts for pair in pairwise(text.lower().split())]
    return Sampled(
        guard_pass=_share(passes(one) for one in verdicts),
        slots_valid=_share(all(one.get(rule) == "ok" for rule in SLOT_RULES) for one in verdicts),
        harmful=_share(one.get("harm") != "ok" for one in verdicts),
        distinct=len(set(texts)) / len(texts),
        distinct_2=len(set(pairs)) / max(1, len(pairs)),
    )


def _share(held: Iterable[bool]) -> float:
    found = list(held)
    return sum(found) / len(found)


class Judge:
    """The writer's graph, opened once for the figures of one round. ``threads``: as few as the trainer's."""

    def __init__(self, settings: Settings, threads: int) -> None:
        path = base.locate(settings.writer.base_model)
        self.model = Model(graph.prepare(path, Path(settings.home) / "writer", rank=settings.training.rank), threads)
        self.book = Book.load()

    def losses(self, adapter: bytes | None, rows: Sequence[ExampleRow], most: int = SCORED) -> list[float]:
        """Mean nats a token of each of the first ``most`` rows' texts, as the graph reads them."""
        tokenizer, eos = self.model.tokenizer, self.model.shape.eos
        requests = []
        for row in rows[:most]:
            prompt = tokenizer.encode(row.prompt, add_special_tokens=False).ids
            text = [*tokenizer.encode(row.text, add_special_tokens=False).ids, eos]
            requests.append((prompt, text))
        with self._adapter(adapter) as loaded, self._engine() as engine:
            futures = [
                engine.submit(Request(prompt, lambda text=text: Forced(text, self.model.shape.vocab), loaded))  # type: ignore[misc]
                for prompt, text in requests
            ]
            return [future.result().score for future in futures]

    def sample(self, adapter: bytes | None, rows: Sequence[ExampleRow]) -> Sampled:
        """Mails written with an adapter in the rows' own contexts, and what the guard says of them."""
        with self._adapter(adapter) as loaded, self._engine() as engine:
            futures = []
            for number in range(MAILS):
                row = rows[number % len(rows)]
                slots = frozenset(slots_in(row.text)) | ALWAYS
                prompt = self.model.tokenizer.encode(row.prompt, add_special_tokens=False).ids

                def walk(row: ExampleRow = row, slots: frozenset[str] = slots, seed: int = number) -> Guided:
                    kinds = (row.trigger, row.tone, slots, "general", ())
                    return Guided(self.model.words, self.book, *kinds, seed=seed, explore=0.0, odds=loaded.odds if loaded else None)

                futures.append((engine.submit(Request(prompt, walk, loaded)), slots, row.trigger))
            written = [(future.result().text, slots, trigger) for future, slots, trigger in futures]
        return sampled([text for text, _, _ in written], [check(*one) for one in written])

    @contextmanager
    def _adapter(self, data: bytes | None) -> Iterator[adapters.Adapter | None]:
        if data is None:
            yield None
            return
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            file.write(data)
            file.flush()
            digest = hashlib.sha256(data).hexdigest()
            yield adapters.read(Path(file.name), self.model.shape, self.model.base_sha256, self.model.rank, digest)

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        engine = Engine(self.model, rows=4)
        try:
            yield engine
        finally:
            engine.close()
