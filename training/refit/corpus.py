"""Beside what was sent: mails composed from the phrase book for the same prompts, and sent mails said a little otherwise.

Composed ones keep what was approved likely where few mails went out; altered
ones (another slot, another word, another order) teach the meaning rather than
the very tokens. Both weigh less than what customers answered.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from models.mail.slots import ALWAYS, slots_in
from models.phrasebook.book import Book
from models.phrasebook.sample import choose
from training.feedback.examples import ExampleRow

COMPOSED = 0.15  # of the rows that were sent
ALTERED = 0.25
COMPOSED_WEIGHT = 0.3  # of a mail's mean weight
ALTERED_WEIGHT = 0.5  # of the weight of the mail that it was made of
SLOTS = (("{product_1}", "{category}"), ("{category}", "{product_1}"))
SYNONYMS = (
    ("Hi ", "Hello "),
    ("Hello ", "Hi "),
    ("glad", "happy"),
    ("happy to", "glad to"),
    ("a reminder", "a nudge"),
    ("quick", "brief"),
    ("no rush", "no hurry"),
    ("Thank you", "Thanks"),
)

Change = Callable[[str, random.Random], str]


def enriched(rows: Sequence[ExampleRow], book: Book, seed: int) -> list[ExampleRow]:
    """The rows, then composed and altered ones; the same for the same rows and seed."""
    draw = random.Random(seed)
    more = [_composed(row, book, draw) for row in draw.sample(list(rows), round(COMPOSED * len(rows)))]
    altered = [_altered(row, draw) for row in draw.sample(list(rows), round(ALTERED * len(rows)))]
    return [*rows, *(row for row in (*more, *altered) if row is not None)]


def _composed(row: ExampleRow, book: Book, draw: random.Random) -> ExampleRow | None:
    """A mail from the book for the prompt of a row that was sent, with no fact that the row's own mail lacked."""
    if row.trigger not in book.chapters:
        return None
    slots = slots_in(row.text)
    said = choose(book, row.trigger, row.tone, {*slots, *ALWAYS}, "general", (), draw)
    return replace(row, intent_id=f"{row.intent_id}/composed", text=book.compose(said), weight=COMPOSED_WEIGHT, clauses="")


def _altered(row: ExampleRow, draw: random.Random) -> ExampleRow | None:
    """The row after one change that changes something; None where none does."""
    for change in draw.sample(CHANGES, len(CHANGES)):
        text = change(row.text, draw)
        if text != row.text:
            return replace(row, intent_id=f"{row.intent_id}/altered", text=text, weight=ALTERED_WEIGHT * row.weight, clauses="")
    return None


def _other_slot(text: str, draw: random.Random) -> str:
    """Another fact of the same thing, in the body alone: what it is called, or what kind it is."""
    head, gap, body = text.partition("\n\n")
    fitting = [pair for pair in SLOTS if pair[0] in body and pair[1] in text]
    return head + gap + body.replace(*draw.choice(fitting)) if fitting else text


def _other_word(text: str, draw: random.Random) -> str:
    fitting = [pair for pair in SYNONYMS if pair[0] in text]
    return text.replace(*draw.choice(fitting), 1) if fitting else text


def _other_order(text: str, draw: random.Random) -> str:
    """Two neighbouring sentences of the body's paragraph change places, the last two, so that the reason comes first."""
    blocks = text.split("\n\n")
    longest = max(range(len(blocks)), key=lambda n: len(blocks[n]))
    sentences = blocks[longest].replace("? ", "?\x00").replace(". ", ".\x00").split("\x00")
    if len(sentences) < 3:
        return text
    sentences[-2:] = sentences[:-3:-1]
    blocks[longest] = " ".join(sentences)
    return "\n\n".join(blocks)


CHANGES: tuple[Change, ...] = (_other_slot, _other_word, _other_order)
