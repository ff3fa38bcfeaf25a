"""Which clauses may be said next: those that fit the case and don't say again what the mail has said.

A *thought* is a content word cut to its stem, or the name of a group of words in
the lexicon's ``[echo]`` ("short", "brief" and "quick" are one thought). Each is said
once in a mail, except a trigger's *themes*: words that many of its clauses need
("order", "coupon"), and the goods' own names.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path

from models.mail.slots import ALWAYS, slots_in
from models.phrasebook.clause import Clause
from models.phrasebook.goods import GROUP_OF

SLOT_REPEATS = 2  # of one slot in a mail; a third "Dark Roast Coffee" reads like a machine
THEME = 9  # clauses of a chapter that share a word: it is what the chapter is about
STEM = 5  # letters: "remind" and "reminder", "patient" and "patience" are one thought
# A mail never holds clauses for both of a pair.
EXCLUSIVE: tuple[frozenset[str], ...] = tuple(
    frozenset(pair)
    for pair in (
        ("first_order", "regular"),
        ("big_basket", "small_basket"),
        ("big_basket", "single_item"),
        ("small_basket", "many_items"),
        ("long_gone", "just_back"),
        ("single_item", "many_items"),
        ("first_order", "long_gone"),
        ("first_order", "just_back"),
        ("regular", "long_gone"),
    )
)
GOODS_WORTH, SITUATION_WORTH, FACT_WORTH, ABOUT_WORTH, TONE_WORTH = 4.0, 3.5, 1.5, 1.0, 0.4  # nats
LEXICON = Path(__file__).parent / "lexicon.toml"
_OF_GRAMMAR = frozenset(
    "a about after all along always an and any are as at be because been before but by can do does don't even every for from"
    " get gets go goes good had has have here here's how i if in into is isn't it it's its just know let like little look make"
    " makes may more most need never next no not nothing now of off often on once one only or other our out over own same see"
    " should so some still take takes than that that's the their them then there there's these they they're this those time to"
    " too up us very want was way we we'd we'll we're we've well what whatever when whenever where which while who will with"
    " without would you you'd you'll you're you've your yours".split()
)
# Too plain to be a thought, though they carry some meaning.
_PLAIN = frozenset(
    "again anything back both bring bye come comes could couldn't didn't doesn't done else enough everything everybody everyone few"
    " find first"
    " give gives had hasn't haven't hello hey hi i'm last made might much must new nobody off perhaps please put ready said say says"
    " since somebody someone something such thing things think though through two until used using wasn't were won't"
    " yes yet".split()
)
_WORDS = re.compile(r"\{?[a-z][a-z0-9_'-]*\}?")


@cache
def tokens(text: str) -> tuple[str, ...]:
    """Words and slots in small letters."""
    return tuple(_WORDS.findall(text.lower().replace("’", "'")))


@cache
def content(text: str) -> frozenset[str]:
    """Words that carry meaning; slots aren't among them."""
    return frozenset(w for w in tokens(text) if w not in _OF_GRAMMAR and w[0] != "{")


def of_grammar(word: str) -> bool:
    """Whether the word carries no meaning of its own."""
    return word in _OF_GRAMMAR


@cache
def _echoes() -> dict[str, str]:
    """Word to the name of its group of the lexicon's ``[echo]``."""
    groups: dict[str, list[str]] = tomllib.loads(LEXICON.read_text(encoding="utf-8"))["echo"]
    return {word: group for group, words in groups.items() for word in words}


@cache
def thoughts(text: str) -> frozenset[str]:
    """What a text says, word by word, that shouldn't be said twice in one mail."""
    named = _echoes()
    found = {w.removesuffix("'s") for w in content(text)} - _PLAIN - GROUP_OF.keys()
    return frozenset(named.get(w) or w[:STEM] for w in found)


def themes(texts: Iterable[str]) -> frozenset[str]:
    """Thoughts that so many of a chapter's clauses share that a mail can't do without repeating them."""
    counted = Counter(thought for text in texts for thought in thoughts(text))
    groups = set(_echoes().values())
    return frozenset(t for t, n in counted.items() if n >= THEME and t not in groups)


def unsaid(clauses: Sequence[Clause], said: Collection[Clause]) -> list[Clause]:
    """Those of ``clauses`` that may follow ``said``: no slot a third time, no text again, no thought again, no other sort of customer.

    Where none is left, the rule about thoughts gives way first, then the others; so something is left wherever ``clauses`` isn't empty.
    """
    spoken = {c.text for c in said}
    used = Counter(slot for c in said for slot in slots_in(c.text))
    heard = frozenset().union(*(c.thoughts for c in said)) if said else frozenset()
    known = {tag for c in said for tag in c.situation}
    barred = {tag for pair in EXCLUSIVE if pair & known for tag in pair - known}
    same = [c for c in clauses if not barred & set(c.situation)]
    fine = [c for c in same if c.text not in spoken and all(used[s] + n <= SLOT_REPEATS for s, n in Counter(slots_in(c.text)).items())]
    return [c for c in fine if not c.thoughts & heard] or fine or same or list(clauses)


def worth(clause: Clause, said: Collection[Clause]) -> float:
    """How much better a clause fits this very case than one that anybody could get, in nats: what the book's tags know already.

    A clause made for these goods or this situation, a fact not named yet, a
    subject that says what the mail is about, words of this tone alone.
    """
    named = frozenset(slot for c in said for slot in c.slots) | ALWAYS
    total = GOODS_WORTH * bool(clause.goods) + SITUATION_WORTH * bool(clause.situation) + TONE_WORTH * (len(clause.tones) == 1)
    total += FACT_WORTH * bool(clause.slots - named)
    return total + ABOUT_WORTH * (clause.move == "subject" and bool(clause.slots or clause.goods or clause.situation))
