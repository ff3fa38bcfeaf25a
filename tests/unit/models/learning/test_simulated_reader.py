from __future__ import annotations

import itertools
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.learning.simulated_reader import LENGTHS, SUBJECTS, Taste, chances, met, portrait, respond, taste_of
from models.phrasebook.book import TONES, Book
from schemas.mail import Choice

BOOK = Book.load()
EVERY = [Taste(*parts) for parts in itertools.product(TONES, LENGTHS, SUBJECTS)]
TASTES = st.sampled_from(EVERY)


@settings(deadline=None)
@given(TASTES, TASTES, st.integers(0, 2**32), st.text(max_size=10))
def test_a_reader_opens_before_clicking_and_clicks_before_ordering(mail: Taste, taste: Taste, seed: int, intent: str) -> None:
    done = respond(mail, taste, seed, intent)
    kinds = [one.kind for one in done]
    assert kinds == kinds[:0] or kinds[0] == "opened"
    assert "clicked" in kinds or "ordered" not in kinds
    assert [one.after for one in done] == sorted(one.after for one in done)
    assert done == respond(mail, taste, seed, intent)


def test_tastes_differ_between_clusters_and_seeds() -> None:
    assert len({taste_of(f"c{n}", 1) for n in range(40)}) > 6
    assert len({taste_of("c0", seed) for seed in range(40)}) > 6


@settings(deadline=None)
@given(TASTES, TASTES)
def test_whatever_comes_nearer_to_the_taste_is_opened_and_clicked_more(mail: Taste, taste: Taste) -> None:
    best = chances(taste, taste)
    found = chances(mail, taste)
    assert 0 < found.open * found.click <= best.open * best.click
    assert (met(mail, taste) == 3) == (found.open * found.click == pytest.approx(best.open * best.click))


def test_answers_come_as_often_as_the_chances_say() -> None:
    taste = Taste("warm", "short", "you")
    opened = mean(bool(respond(taste, taste, 1, f"i{n}")) for n in range(4000))
    assert opened == pytest.approx(chances(taste, taste).open, abs=0.03)


def test_a_mail_is_as_its_clauses_are() -> None:
    subjects = BOOK.clauses("welcome", "subject", "warm")
    reasons = sorted(BOOK.clauses("welcome", "reason", "warm"), key=lambda clause: len(clause.text.split()))
    you = next(clause for clause in subjects if " you" in clause.text)
    plain = next(clause for clause in subjects if "you" not in clause.text.lower())

    def of(subject: str, reason: str) -> Taste:
        return portrait(BOOK, "welcome", "warm", (Choice("subject", subject, 1.0), Choice("reason", reason, 1.0)))

    assert of(you.id, reasons[0].id) == Taste("warm", "short", "you")
    assert of(plain.id, reasons[-1].id) == Taste("warm", "long", "plain")
