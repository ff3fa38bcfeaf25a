"""Odds of clauses from feedback: they find what is worth more, know its style again elsewhere, and stay within reach."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.learning.clause_odds import MOST, REWARD_A_NAT, ClauseOdds, odds_of
from models.learning.tone import ToneBandit, draw_tone
from models.phrasebook.book import Book
from models.phrasebook.style import styles_of

BOOK = Book.load()
STYLES = styles_of(BOOK)


def sent(count: int, good: str, seed: int = 1) -> list[tuple[str, list[str], float]]:
    """Mails of three subjects and three bodies; ``good`` is worth a click more often."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        clauses = [draw.choice(("s1", "s2", "s3")), draw.choice(("b1", "b2", "b3"))]
        made.append(("welcome/warm", clauses, float(draw.random() < (0.4 if good in clauses else 0.1))))
    return made


def test_what_brings_clicks_gains_and_little_news_says_little() -> None:
    much, little = odds_of(sent(2000, "s2")), odds_of(sent(10, "s2"))
    assert much["s2"] > 2.0 > max(abs(much.get(name, 0.0)) for name in ("b1", "b2", "b3"))
    assert much["s2"] > much["s1"]
    assert max(map(abs, little.values())) < much["s2"]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=3), st.floats(-3, 2))))
def test_odds_stay_within_reach_and_do_not_mind_the_order(rows: list[tuple[str, list[str], float]]) -> None:
    found = odds_of(rows)
    assert all(abs(value) <= MOST for value in found.values())
    assert odds_of(rows[::-1]) == pytest.approx(found, abs=0.02)


def test_a_style_that_was_liked_is_known_again_where_nothing_was_sent() -> None:
    draw, learned = random.Random(2), ClauseOdds(STYLES)
    bodies = [c for c in BOOK.chapter("welcome").clauses if c.move == "reason"]
    for _ in range(3000):
        clause = draw.choice(bodies)
        learned.learn("welcome/warm", [clause.id], float(draw.random() < (0.1 if STYLES[clause.id].get("text/longer", 0) > 0 else 0.4)))
    found = learned.odds()
    elsewhere = [c for c in BOOK.chapter("win_back").clauses if c.move == "reason"]
    short = [found.get(c.id, 0.0) for c in elsewhere if STYLES[c.id].get("text/longer", 0) < -0.2]
    long = [found.get(c.id, 0.0) for c in elsewhere if STYLES[c.id].get("text/longer", 0) > 0.2]
    assert np.mean(short) > np.mean(long) + 0.5


def test_draws_agree_with_the_posterior() -> None:
    learned = ClauseOdds()
    for context, clauses, reward in sent(500, "b1"):
        learned.learn(context, clauses, reward)
    draws = learned.draws(np.random.default_rng(1), 4000)
    column = learned.columns("welcome/warm", ["b1"])[1]
    mean = float(draws[:, column].mean()) / REWARD_A_NAT
    assert mean == pytest.approx(learned.odds()["b1"], abs=0.3)


def test_the_tone_that_is_clicked_is_drawn_most_and_no_tone_is_given_up() -> None:
    draw, bandit = random.Random(3), ToneBandit()
    assert set(bandit.chances("c0").values()) == {1 / 3}
    for _ in range(600):
        tone = draw.choice(("warm", "crisp", "playful"))
        bandit.learn("c0", tone, draw.random() < (0.3 if tone == "crisp" else 0.1))
    chances = bandit.chances("c0")
    assert chances["crisp"] > 0.9
    assert min(chances.values()) >= 0.02
    assert chances == ToneBandit(bandit.counts).chances("c0")
    assert bandit.chances("c1") == ToneBandit().chances("c1")


@settings(deadline=None)
@given(st.text(max_size=8))
def test_a_draw_is_the_same_at_each_replay_and_says_its_chance(name: str) -> None:
    chances = {"warm": 0.2, "crisp": 0.5, "playful": 0.3}
    tone, chance = draw_tone(chances, name)
    assert (tone, chance) == draw_tone(chances, name)
    assert chance == chances[tone]
