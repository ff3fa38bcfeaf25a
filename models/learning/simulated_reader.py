"""A simulated reader, whose truth is known: no public data set holds mail and its effect, so learning is judged against this one.

Each cluster has a hidden taste, drawn by a seed: a tone, a length and a style
of subject. A reader opens by the subject, clicks by tone and length, orders
after some clicks, and now and then objects. Pure functions: the same mail,
taste and seed give the same answer.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import msgspec

from models.phrasebook.book import TONES, Book
from schemas.mail import Choice

Length = Literal["short", "long"]
Subject = Literal["you", "plain"]
LENGTHS: tuple[Length, ...] = ("short", "long")
SUBJECTS: tuple[Subject, ...] = ("you", "plain")
HOUR = 3600.0

_YOU = re.compile(r"\b(?:you|your|yours)\b", re.IGNORECASE)


class Taste(msgspec.Struct, frozen=True):
    """What a cluster likes, or what a mail is like: its tone, longer or shorter than most, a subject that says "you" or doesn't."""

    tone: str
    length: Length
    subject: Subject


class Chances(msgspec.Struct, frozen=True):
    """Probabilities of one reader and one mail; ``click``, ``object`` and ``complain`` given an opening, ``order`` given a click."""

    open: float
    click: float
    order: float
    object: float
    complain: float


class Followed(msgspec.Struct, frozen=True):
    """One thing that a reader did. ``after``: seconds since the mail arrived."""

    kind: Literal["opened", "clicked", "ordered", "unsubscribed", "complained"]
    after: float


def taste_of(cluster: str, seed: int) -> Taste:
    """The hidden taste of a cluster, the same at each call."""
    draw = random.Random(_number(f"taste/{seed}/{cluster}"))
    return Taste(draw.choice(TONES), draw.choice(LENGTHS), draw.choice(SUBJECTS))


def portrait(book: Book, trigger: str, tone: str, choices: Iterable[Choice]) -> Taste:
    """What a mail is like. Its length is measured, move by move, against the clauses of that tone: half of all mails are long."""
    words, subject = 0.0, ""
    for choice in choices:
        text = book.clause(choice.clause).text
        if choice.move == "subject":
            subject = text
        else:
            words += _words(text) - _typical(book, trigger, choice.move, tone)
    return Taste(tone, "long" if words > 0 else "short", "you" if _YOU.search(subject) else "plain")


@lru_cache(maxsize=2000)
def _typical(book: Book, trigger: str, move: str, tone: str) -> float:
    """Mean words of a move's clauses in a tone."""
    clauses = [c for c in book.chapter(trigger).clauses if c.move == move and (not c.tones or tone in c.tones)]
    return sum(_words(c.text) for c in clauses) / max(len(clauses), 1)


def _words(text: str) -> int:
    return len(text.split())


def met(mail: Taste, taste: Taste) -> int:
    """How many of the three are as the reader likes them."""
    return (mail.tone == taste.tone) + (mail.length == taste.length) + (mail.subject == taste.subject)


def chances(mail: Taste, taste: Taste) -> Chances:
    """What a reader of this taste does with such a mail. Opens 15-65 %, clicks 1-34 % of all mails: between a dull list and a loved one."""
    tone, length, subject = mail.tone == taste.tone, mail.length == taste.length, mail.subject == taste.subject
    return Chances(
        open=0.15 + 0.4 * subject + 0.1 * tone,
        click=0.03 + 0.25 * tone + 0.25 * length,
        order=0.3,
        object=0.002 if tone else 0.01,
        complain=0.0005 if tone else 0.002,
    )


def respond(mail: Taste, taste: Taste, seed: int, intent_id: str) -> tuple[Followed, ...]:
    """What one reader does with one mail, in order. No click without an opening before it, no order without a click."""
    draw, chance = random.Random(_number(f"reader/{seed}/{intent_id}")), chances(mail, taste)
    if draw.random() >= chance.open:
        return ()
    at = draw.uniform(0.02, 20.0) * HOUR
    done = [Followed("opened", at)]
    if draw.random() < chance.click:
        at += draw.uniform(0.005, 0.2) * HOUR
        done.append(Followed("clicked", at))
        if draw.random() < chance.order:
            done.append(Followed("ordered", at + draw.uniform(0.1, 48.0) * HOUR))
    elif draw.random() < chance.complain:
        done.append(Followed("complained", at + 0.01 * HOUR))
    elif draw.random() < chance.object:
        done.append(Followed("unsubscribed", at + 0.01 * HOUR))
    return tuple(done)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
