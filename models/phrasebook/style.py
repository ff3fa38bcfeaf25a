"""What a clause is like, apart from what it says: a few numbers that mean the same in every trigger's chapter."""

from __future__ import annotations

import re
from collections.abc import Mapping

from models.mail.slots import slots_in
from models.phrasebook.book import Book, Clause

WORDS = 5.0  # words more than its move's clauses usually have, in these units
_YOU = re.compile(r"\b(?:you|your|yours)\b", re.IGNORECASE)
_WE = re.compile(r"\b(?:we|us|our|ours)\b", re.IGNORECASE)
_GOODS = frozenset({"product_1", "product_2", "product_3", "category"})


def style(clause: Clause, usual: float) -> dict[str, float]:
    """Numbers by name, noughts left out. ``usual``: words of its move's clauses. Of a subject and of the text they are told apart."""
    text, slots = clause.text, set(slots_in(clause.text))
    found = {
        "longer": (len(text.split()) - usual) / WORDS,
        "you": float(bool(_YOU.search(text))),
        "we": float(bool(_WE.search(text))),
        "asks": float("?" in text),
        "goods": float(bool(slots & _GOODS)),
        "shop": float("shop_name" in slots),
        "name": float("first_name" in slots),
    }
    where = "subject" if clause.move == "subject" else "text"
    return {f"{where}/{name}": round(value, 3) for name, value in found.items() if value}


def styles_of(book: Book) -> Mapping[str, Mapping[str, float]]:
    """Style by clause id, for the whole book."""
    found: dict[str, Mapping[str, float]] = {}
    for chapter in book.chapters.values():
        for move in chapter.moves:
            clauses = [clause for clause in chapter.clauses if clause.move == move]
            usual = sum(len(clause.text.split()) for clause in clauses) / max(len(clauses), 1)
            found |= {clause.id: style(clause, usual) for clause in clauses}
    return found
