"""Composed and altered mails: few, light, and made of the same facts."""

from __future__ import annotations

import random

import pytest

from models.mail import guard
from models.mail.slots import ALWAYS, slots_in
from models.phrasebook.book import TONES, Book
from models.phrasebook.sample import drafts
from training.feedback.examples import ExampleRow
from training.refit import corpus
from training.refit.corpus import enriched

BOOK = Book.load()


@pytest.fixture(scope="module")
def rows() -> list[ExampleRow]:
    found = []
    for trigger in ("welcome", "replenishment", "win_back", "recommendation"):
        for tone in TONES:
            texts = drafts(BOOK, trigger, tone, 10, seed=1)
            found += [ExampleRow(f"{trigger}{tone}{n}", "c0", trigger, tone, "p", text, 1.0, 0.5, float(n)) for n, text in enumerate(texts)]
    return found


def test_what_was_sent_stays_and_the_rest_is_few_and_lighter(rows: list[ExampleRow]) -> None:
    made = enriched(rows, BOOK, 1)
    assert made[: len(rows)] == rows
    more = made[len(rows) :]
    assert 0.25 * len(rows) < len(more) <= 0.41 * len(rows)
    assert all(row.weight < 1.0 for row in more)
    assert len({row.intent_id for row in made}) == len(made)
    assert made == enriched(rows, BOOK, 1) != enriched(rows, BOOK, 2)
    assert enriched([], BOOK, 1) == []


def test_nothing_new_states_a_fact_that_its_mail_had_not(rows: list[ExampleRow]) -> None:
    by_id = {row.intent_id: row for row in rows}
    for row in enriched(rows, BOOK, 3)[len(rows) :]:
        own = by_id[row.intent_id.rpartition("/")[0]]
        assert set(slots_in(row.text)) <= set(slots_in(own.text)) | ALWAYS
        assert row.prompt == own.prompt
        assert (row.trigger, row.tone) == (own.trigger, own.tone)


def test_composed_mails_pass_the_guard(rows: list[ExampleRow]) -> None:
    composed = [row for row in enriched(rows, BOOK, 4) if row.intent_id.endswith("/composed")]
    assert len(composed) > 5
    bad = [row.text for row in composed if not guard.passes(guard.check(row.text, set(slots_in(row.text)) | ALWAYS, row.trigger))]
    assert not bad


def test_each_change_changes_something_and_only_its_own_thing() -> None:
    body = "Your {product_1} may run low. It is a reminder. No rush at all."
    text = f"Subject: More {{category}}\n\nHi {{first_name}},\n\n{body}\n\nLook: {{cta_link}}"
    draw = random.Random(0)
    slot, word, order = (change(text, draw) for change in corpus.CHANGES)
    assert slot == text.replace("{product_1}", "{category}")
    assert word != text
    assert sorted(word.split()) != sorted(text.split())
    assert order == text.replace("It is a reminder. No rush at all.", "No rush at all. It is a reminder.")
