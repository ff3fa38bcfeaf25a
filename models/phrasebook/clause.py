"""One approved wording of a move, and whether it may be said in a case."""

from __future__ import annotations

from collections.abc import Collection

import msgspec


class Clause(msgspec.Struct, frozen=True):
    """One approved wording of a move. An empty ``tones``, ``goods`` or ``situation`` means any.

    ``unless``: facts beside which the wording would be too vague ("something you buy often" where the product is known).
    """

    id: str
    move: str
    text: str
    tones: tuple[str, ...] = ()
    goods: tuple[str, ...] = ()
    situation: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    trigger: str = ""
    slots: frozenset[str] = frozenset()
    thoughts: frozenset[str] = frozenset()  # see ``models.phrasebook.choice``

    def fits(self, tone: str, slots: Collection[str], goods: str, situation: Collection[str]) -> bool:
        """Whether the clause may be said there; an empty tone means any tone."""
        return (
            (not tone or not self.tones or tone in self.tones)
            and (not self.goods or goods in self.goods)
            and self.slots <= set(slots)
            and not set(self.unless) & set(slots)
            and set(self.situation) <= set(situation)
        )
