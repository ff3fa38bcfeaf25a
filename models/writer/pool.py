"""Drafts kept for reuse: many customers share a prompt, and words stand around slots, so one draft serves many.

A pure data structure: no clock, no threads.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from models.writer.automaton import Written
from models.writer.prompt import Prompt

SPECIAL = 0.5  # nats a token that a draft gains by clauses for these very goods and this situation
KEYS = 4000  # prompts kept; the one that was asked for longest ago goes first

Key = tuple[Prompt, str]  # context, release id


@dataclass(slots=True)
class Kept:
    """One draft."""

    draft: Written
    guard: dict[str, str]
    rank: float


@dataclass(slots=True)
class _Shelf:
    """``had``: who got which words, as 8-byte hashes: words that make place for better ones may be offered again."""

    had: set[int] = field(default_factory=set)
    kept: list[Kept] = field(default_factory=list)
    offered: int = 0
    turn: int = 0
    asked: int = 0


def rank(draft: Written) -> float:
    """What the reranker thinks of a draft: likely words, and words for this case rather than any."""
    return draft.score + SPECIAL * draft.special


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _mail(customer: str, draft: Written) -> int:
    return _hash(f"{customer}\n{draft.text}")


class Pool:
    """The best ``size`` of ``size * oversample`` drafts for each (prompt, release), given out by turns."""

    def __init__(self, size: int = 8, oversample: int = 2, fresh_share: float = 0.1) -> None:
        self.size, self.goal, self.fresh_share = size, size * oversample, fresh_share
        self._shelves: OrderedDict[Key, _Shelf] = OrderedDict()

    def fresh(self, intent_id: str) -> bool:
        """Whether this intent gets a mail of its own although the pool could serve; the same answer at each replay."""
        return _hash("fresh" + intent_id) / 2**64 < self.fresh_share

    def have(self, key: Key) -> int:
        """Drafts on the shelf."""
        shelf = self._shelves.get(key)
        return len(shelf.kept) if shelf else 0

    def wants(self, key: Key) -> int:
        """Drafts still to be written until the shelf has chosen among enough."""
        shelf = self._shelves.get(key)
        return self.goal - shelf.offered if shelf else self.goal

    def ask(self, key: Key) -> None:
        """Note that somebody wanted this prompt, so that idle time goes to prompts in demand."""
        shelf = self._shelves.setdefault(key, _Shelf())
        shelf.asked += 1
        self._shelves.move_to_end(key)
        while len(self._shelves) > KEYS:
            self._shelves.popitem(last=False)

    def take(self, key: Key, customer: str) -> Kept | None:
        """The next draft by turns that this customer never had; None where there is none."""
        shelf = self._shelves.get(key)
        if shelf is None or not shelf.kept:
            return None
        for step in range(len(shelf.kept)):
            kept = shelf.kept[(shelf.turn + step) % len(shelf.kept)]
            mail = _mail(customer, kept.draft)
            if mail not in shelf.had:
                shelf.turn = (shelf.turn + step + 1) % len(shelf.kept)
                shelf.had.add(mail)
                return kept
        return None

    def offer(self, key: Key, draft: Written, guard: dict[str, str], customer: str = "") -> bool:
        """A draft that passed the guard; ``customer``: who gets it now. True where it is kept: new words, and among the best."""
        shelf = self._shelves.setdefault(key, _Shelf())
        shelf.offered += 1
        if customer:
            shelf.had.add(_mail(customer, draft))
        if any(k.draft.text == draft.text for k in shelf.kept):
            return False
        made = Kept(draft, guard, rank(draft))
        shelf.kept.append(made)
        shelf.kept.sort(key=lambda k: -k.rank)
        del shelf.kept[self.size :]
        return made in shelf.kept

    def skip(self, key: Key) -> None:
        """A draft that the guard refused: it counts as offered, so that filling ends."""
        self._shelves.setdefault(key, _Shelf()).offered += 1

    def hungry(self) -> Key | None:
        """The prompt most in demand whose shelf isn't full; None where all that were asked for twice are."""
        lacking = [(shelf.asked, key) for key, shelf in self._shelves.items() if shelf.asked > 1 and shelf.offered < self.goal]
        return max(lacking, key=lambda pair: pair[0])[1] if lacking else None

    def keep_releases(self, serving: Collection[str]) -> int:
        """Drop shelves of releases that serve no more; how many went."""
        old = [key for key in self._shelves if key[1] not in serving]
        for key in old:
            del self._shelves[key]
        return len(old)
