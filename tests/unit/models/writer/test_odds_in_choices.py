"""What feedback said of clauses leans the walk's choice, and the propensity that is logged is the one it was chosen with."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.phrasebook.book import Book
from models.writer.automaton import Guided, Node, Vocabulary, lean
from models.writer.base import load
from tests.tiny_model import tiny

BOOK = Book.load()
KIND = ("welcome", "warm", (), "general", ())


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    base = load(tiny(), house=None)
    return Vocabulary(base.tokenizer, base.shape.eos)


def trie(paths: list[tuple[int, ...]]) -> Node:
    root = Node()
    for index, path in enumerate(paths):
        node = root
        for token in path:
            node = node.children.setdefault(token, Node())
        node.clause = index
    return root


@settings(deadline=None)
@given(st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8).map(sorted), st.data())
def test_a_place_leans_as_the_mean_of_the_clauses_below_it(paths: list[tuple[int, ...]], data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.floats(-3, 3), min_size=len(paths), max_size=len(paths)))
    found = lean(trie(paths), scores)
    for place, value in found.items():
        ends = place[-1:] == (-1,)
        below = [s for p, s in zip(paths, scores, strict=True) if (p == place[:-1] if ends else p[: len(place)] == place)]
        assert value == pytest.approx(math.log(sum(map(math.exp, below)) / len(below)), abs=1e-9)


def first_subjects(words: Vocabulary, odds: dict[str, float], draws: int) -> list[tuple[str, float]]:
    found = []
    for seed in range(draws):
        walk = Guided(words, BOOK, *KIND, seed=seed, explore=0.0, odds=odds)
        walk.start()
        while "subject" not in walk.said:
            walk.take(walk.wants, np.zeros(len(walk.wants), np.float32))
        found.append((walk.written_choices[0].clause, walk.written_choices[0].propensity))
    return found


def test_a_clause_that_feedback_speaks_for_is_chosen_more_often_and_its_propensity_says_so(words: Vocabulary) -> None:
    liked = BOOK.clauses("welcome", "subject", "warm")[2].id
    without, leaning = first_subjects(words, {}, 300), first_subjects(words, {liked: 3.0}, 300)
    before, after = (sum(clause == liked for clause, _ in found) / 300 for found in (without, leaning))
    told = {p for clause, p in leaning if clause == liked}
    assert after > before + 0.2
    assert len(told) == 1
    assert after == pytest.approx(told.pop(), abs=0.1)
