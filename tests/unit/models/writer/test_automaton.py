"""Whatever the model says, the draft is made of approved clauses, in order, and reads as the book composes it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.mail import guard
from models.mail.slots import ALWAYS, slots_in
from models.phrasebook.book import GOODS, TONES, Book, Chapter, Clause
from models.phrasebook.choice import SLOT_REPEATS
from models.writer.automaton import Free, Guided, Vocabulary, Written, ban, formed
from models.writer.base import load
from tests.tiny_model import tiny

FACTS = ("product_1", "product_2", "price_1", "category", "order_date", "offer", "coupon_code", "old_price_1")


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    base = load(tiny(), house=None)
    return Vocabulary(base.tokenizer, base.shape.eos)


BOOK = Book.load()


def play(walk: Any, rng: np.random.Generator) -> tuple[Written, list[int]]:
    """A walk under a model that says anything; the tokens that were fed."""
    fed = list(walk.start())
    for _ in range(2000):
        if walk.finished:
            return walk.written(), fed
        fed += walk.take(walk.wants, rng.normal(0, 3, len(walk.wants)).astype(np.float32))
    raise AssertionError("the walk doesn't end")


@settings(max_examples=120, deadline=None)
@given(
    trigger=st.sampled_from(BOOK.triggers),
    tone=st.sampled_from(TONES),
    goods=st.sampled_from(GOODS),
    facts=st.sets(st.sampled_from(FACTS)),
    situation=st.sampled_from([(), ("first_order",), ("regular", "coupon_user"), ("long_gone",)]),
    seed=st.integers(0, 2**62),
    explore=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_a_guided_draft_is_always_within_the_book(
    words: Vocabulary, trigger: str, tone: str, goods: str, facts: set[str], situation: tuple[str, ...], seed: int, explore: float
) -> None:
    slots = facts | set(BOOK.chapter(trigger).facts)
    walk = Guided(words, BOOK, trigger, tone, slots, goods, situation, seed=seed, explore=explore)
    draft, fed = play(walk, np.random.default_rng(seed))
    said = {choice.move: BOOK.clause(choice.clause) for choice in draft.choices}
    assert list(said) == [m for m in BOOK.moves(trigger) if BOOK.clauses(trigger, m, tone, slots | ALWAYS, goods, situation)]
    for clause in said.values():
        assert clause.fits(tone, slots | ALWAYS, goods, situation)
    assert draft.text == BOOK.compose(said)
    assert draft.text.startswith(words.tokenizer.decode(fed))  # fed: the draft but for its known end
    assert max(Counter(slots_in(draft.text)).values()) <= SLOT_REPEATS
    assert all(0 < choice.propensity <= 1 for choice in draft.choices)


def test_segments_joined_are_the_draft_as_the_tokenizer_sees_it(words: Vocabulary) -> None:
    walk = Guided(words, BOOK, "welcome", "warm", {"product_1"}, "coffee_tea", (), seed=3)
    draft, fed = play(walk, np.random.default_rng(1))
    assert words.encode(draft.text)[: len(fed)] == tuple(fed)


def _book(*texts: str) -> Book:
    clauses = tuple(Clause(f"s{i}", "subject", text, trigger="t", slots=frozenset(slots_in(text))) for i, text in enumerate(texts))
    return Book([Chapter("t", ("subject",), frozenset(), frozenset(), clauses, {}, "t.toml")])


def test_propensity_is_that_of_the_policy(words: Vocabulary) -> None:
    """Frequencies of 4,000 draws against the logged mixture; one clause is the beginning of another."""
    book = _book("Hello there", "Hello there again", "Your cup is empty", "Good morning")
    counts: Counter[str] = Counter()
    logged: dict[str, float] = {}
    fixed = np.random.default_rng(0).normal(0, 1, 2000)
    for seed in range(4000):
        walk = Guided(words, book, "t", "warm", set(), "general", (), seed=seed, temperature=0.8, explore=0.2)
        walk.start()
        while not walk.finished:
            walk.take(walk.wants, fixed[walk.wants].astype(np.float32))
        choice = walk.written().choices[0]
        counts[choice.clause] += 1
        assert logged.setdefault(choice.clause, choice.propensity) == choice.propensity
    assert set(counts) == {"s0", "s1", "s2", "s3"}
    assert sum(logged.values()) == pytest.approx(1.0, abs=1e-4)
    for clause, p in logged.items():
        assert counts[clause] / 4000 == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5 + 1e-3)


def test_ban_spares_words_and_takes_digits_money_and_braces(words: Vocabulary) -> None:
    out = ban(words)
    for token in range(len(out)):
        text = words.tokenizer.decode([token], skip_special_tokens=False)
        if any(c in text for c in "0123456789$€{}"):
            assert out[token] < -1e8
    assert out[words.eos] == 0 and sum(out == 0) > 100


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**62))
def test_free_words_hold_whole_known_slots_and_no_digits(words: Vocabulary, seed: int) -> None:
    rng = np.random.default_rng(seed)
    allowed = np.flatnonzero(ban(words) == 0)
    walk = Free(words, {"product_1", "offer"}, seed=seed, limit=60)
    walk.start()
    while not walk.finished:
        ids = np.concatenate([rng.choice(allowed, 20), walk.wants]) if walk.whole else walk.wants
        walk.take(ids, rng.normal(0, 1, len(ids)).astype(np.float32))
    text = walk.written().text
    verdicts = guard.check_words(text, {"product_1", "offer"} | ALWAYS)
    assert verdicts["slots"] == verdicts["braces"] == "ok", (text, verdicts)
    assert not any(c.isdigit() for c in text.replace("product_1", ""))


def test_free_text_gets_the_form_of_a_draft() -> None:
    text = formed("Subject: A cup of tea\nPreheader: For you\nBody: Hi {first_name}, the kettle is on.")
    assert text == "Subject: A cup of tea\nPreheader: For you\n\nHi {first_name}, the kettle is on.\n\nHave a look: {cta_link}"
