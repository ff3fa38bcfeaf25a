"""When a serving release gets newer odds: after so many new examples, and only for an adapter."""

from __future__ import annotations

import msgspec

from models.phrasebook.book import Book
from models.phrasebook.style import styles_of
from schemas.release import Release
from training.feedback.clause_odds import ClauseOddsTracker, odds_from
from training.feedback.examples import ExampleRow
from training.rollout.lineage import leaning

SUBJECTS = [clause.id for clause in Book.load().clauses("welcome", "subject", "warm")[:3]]
SERVING = Release("c1-1", "c1", 1, "/a/1", "1" * 64, "b" * 64, 4, "", examples=50)


def mails(count: int) -> list[ExampleRow]:
    """The first subject is worth a click, the others nothing."""
    return [ExampleRow(f"i{n}", "c1", "welcome", "warm", "", "", 1.0, float(n % 3 == 0), 0.0, SUBJECTS[n % 3]) for n in range(count)]


def test_each_so_many_examples_bring_newer_odds() -> None:
    made = ClauseOddsTracker(30)
    assert made.news(SERVING, mails(79)) == {}  # the refit knew 50
    first = made.news(SERVING, mails(80))
    assert first == odds_from(mails(80), styles_of(Book.load())) and first[SUBJECTS[0]] > first[SUBJECTS[1]]
    assert made.news(SERVING, mails(109)) == {}
    assert made.news(SERVING, mails(110)) not in ({}, first)
    refitted = msgspec.structs.replace(SERVING, release_id="c1-2", examples=120)
    assert made.news(refitted, mails(140)) == {}
    assert made.news(refitted, mails(150)) != {}


def test_a_restart_says_nothing_twice_and_the_base_alone_leans_nowhere() -> None:
    told = leaning(SERVING, ClauseOddsTracker(30).news(SERVING, mails(80)), "")
    assert told.odds != {} and ClauseOddsTracker(30).news(told, mails(80)) == {}
    assert ClauseOddsTracker(30).news(msgspec.structs.replace(SERVING, artifact=""), mails(80)) == {}
