"""Continuous batching: any mix of mails gives each the text that it would have alone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from models.phrasebook.book import Book
from models.writer import Cache, Engine, Free, Guided, Model, Request, Written, adapters, prepare
from models.writer.engine import POLITE
from models.writer.prompt import Prompt, render, shared
from schemas.errors import ModelError
from tests.tiny_model import lora, tiny

BOOK = Book.load()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(prepare(tiny(), tmp_path_factory.mktemp("writer"), "fp32", rank=8, max_len=480, house=None), 1)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    made = Engine(model, rows=4)
    yield made
    made.close()


@pytest.fixture(scope="module")
def adapter(model: Model, tmp_path_factory: pytest.TempPathFactory) -> adapters.Adapter:
    file = lora(tmp_path_factory.mktemp("a") / "a.safetensors", model.base_sha256, scale=0.5)
    return adapters.read(file, model.shape, model.base_sha256, model.rank)


def ask(engine: Engine, seed: int, adapter: adapters.Adapter | None = None, about: str = "", explore: float = 0.0) -> Future[Written]:
    words = engine.model.words
    prompt = Prompt("welcome", "warm", "en", about, "coffee_tea", ("first_order",), ("product_1",))

    def walk() -> Guided:
        return Guided(words, BOOK, "welcome", "warm", {"product_1"}, "coffee_tea", ("first_order",), seed=seed, explore=explore)

    return engine.submit(Request(words.encode(render(prompt)), walk, adapter, shared=len(words.encode(shared(prompt)))))


def test_without_an_adapter_the_numbers_are_those_of_an_empty_one_to_the_last_bit(model: Model, adapter: adapters.Adapter) -> None:
    empty = adapters.Adapter("none", model.rank, tuple(np.zeros_like(a) for a in adapter.a), tuple(np.zeros_like(b) for b in adapter.b))
    tokens = model.words.encode("Subject: Welcome to {shop_name}")
    heard = []
    for held in (None, empty, adapter):
        cache = Cache(model, 2)
        cache.adapt(0, held)
        chunk = cache.chunk(0, tokens)
        step = cache.step(np.array([tokens[0], 0]), np.array([True, False]))
        heard.append(np.concatenate([chunk, step[0]]))
    assert np.array_equal(heard[0], heard[1]) and not np.allclose(heard[0], heard[2])


def test_a_mail_is_the_same_alone_and_among_others(model: Model, adapter: adapters.Adapter, engine: Engine) -> None:
    mixed = [ask(engine, seed, adapter if seed % 2 else None, about=f"kind {seed % 3}") for seed in range(13)]
    texts = [future.result(60) for future in mixed]
    for seed in (0, 1, 7, 12):
        alone = Engine(model, rows=4)
        try:
            again = ask(alone, seed, adapter if seed % 2 else None, about=f"kind {seed % 3}").result(60)
        finally:
            alone.close()
        assert again == texts[seed]
    assert len({w.text for w in texts}) > 5
    assert engine.counters.mails == 13 and engine.counters.prefix_hits >= 13 - 6 - 1
    assert engine.counters.tokens == sum(w.tokens for w in texts)


def test_an_adapter_changes_what_is_chosen(engine: Engine, adapter: adapters.Adapter) -> None:
    with_it = [ask(engine, seed, adapter) for seed in range(6)]
    without = [ask(engine, seed) for seed in range(6)]
    assert [f.result(60).text for f in with_it] != [f.result(60).text for f in without]


def test_propensities_are_the_models(model: Model, engine: Engine) -> None:
    """The first choice, computed by hand from a plain forward pass."""
    from models.writer import Cache

    got = ask(engine, 3).result(60)
    words = model.words
    walk = Guided(words, BOOK, "welcome", "warm", {"product_1"}, "coffee_tea", ("first_order",), seed=3, explore=0.0)
    prompt = Prompt("welcome", "warm", "en", "", "coffee_tea", ("first_order",), ("product_1",))
    tokens = [*words.encode(render(prompt)), *walk.start()]
    while "subject" not in walk.said:
        logits = model.output[walk.wants] @ Cache(model, 1).chunk(0, tokens)
        tokens += walk.take(walk.wants, logits)
    assert walk.written_choices[0].clause == got.choices[0].clause
    assert got.choices[0].propensity == pytest.approx(walk.written_choices[0].propensity, rel=1e-3)


def test_free_mails_end_and_hold_no_digits(engine: Engine) -> None:
    words = engine.model.words
    futures = [engine.submit(Request(words.encode("Write:\n"), lambda s=s: Free(words, {"offer"}, seed=s, limit=40))) for s in range(6)]
    for future in futures:
        written = future.result(60)
        assert written.text.startswith("Subject:") and written.tokens <= 60
        assert not any(c.isdigit() for c in written.text)


def test_one_that_does_not_fit_fails_alone_and_close_cancels(engine: Engine) -> None:
    words = engine.model.words
    long = engine.submit(Request(words.encode("way too long " * 300), lambda: Free(words, set(), seed=0)))
    fine = ask(engine, 1)
    with pytest.raises(ModelError, match="longer than"):
        long.result(60)
    assert fine.result(60).text
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        ask(engine, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone gives a thread a priority of its own")
def test_lanes_are_polite_and_no_less_so_than_their_process(model: Model) -> None:
    def lanes() -> list[int]:
        return [thread.native_id or 0 for thread in threading.enumerate() if thread.name == "writer-engine"]

    before = lanes()
    engine = Engine(model, rows=1)
    try:
        ask(engine, 1).result(60)
        (lane,) = set(lanes()) - set(before)
        ours = os.getpriority(os.PRIO_PROCESS, os.getpid())
        assert os.getpriority(os.PRIO_PROCESS, lane) == max(ours, POLITE)
    finally:
        engine.close()


def test_two_lanes_write_what_one_writes(model: Model, adapter: adapters.Adapter) -> None:
    pair = Model(model.folder, threads=2)
    assert (model.lanes, pair.lanes) == (1, 2)
    found = []
    for each in (model, pair):
        engine = Engine(each, rows=5)
        try:
            asked = [ask(engine, seed, adapter if seed % 2 else None, about=f"kind {seed % 3}") for seed in range(12)]
            found.append([future.result(60) for future in asked])
            assert engine.queued == 0 and engine.counters.mails == 12
            assert engine.counters.tokens == sum(one.tokens for one in found[-1])
        finally:
            engine.close()
    assert found[0] == found[1]
