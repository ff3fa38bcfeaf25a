"""What the model is told: everything that words may depend on, and nothing that names a person or a number.

The fewer contexts the words are told apart by, the more customers share a draft
of the pool, and the faster a burst is served. So a prompt is narrowed to what
the phrase book itself distinguishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from models.learning.portrait import lasting
from models.mail.facts import slots_of
from models.mail.slots import ALWAYS
from models.phrasebook.book import Book
from schemas.mail import Intent


class Prompt(msgspec.Struct, frozen=True):
    """One context, hashable. Many customers share the exact same one: with the release it keys the draft pool."""

    trigger: str
    tone: str
    locale: str
    about: str  # the cluster's lasting traits
    goods: str  # a phrase book group
    situation: tuple[str, ...]  # sorted
    slots: tuple[str, ...]  # facts that this mail has, sorted


def prompt_of(intent: Intent, description: str = "") -> Prompt:
    """The whole context of an intent; ``description`` is its cluster's, from the newest snapshot."""
    goods = next((p.goods for p in intent.facts.products if p.goods), "general")
    return Prompt(
        trigger=intent.trigger,
        tone=intent.tone or "warm",
        locale=intent.locale,
        about=lasting(description),
        goods=goods,
        situation=tuple(sorted(intent.facts.situation)),
        slots=slots_of(intent.facts),
    )


@lru_cache(maxsize=20_000)
def narrow(prompt: Prompt, book: Book) -> Prompt:
    """The same without goods, situations and slots that no clause open to it asks for; a trigger without a chapter stays as it is."""
    if prompt.trigger not in book.chapters:
        return prompt
    have = frozenset(prompt.slots) | ALWAYS
    clauses = book.chapters[prompt.trigger].clauses
    # "general" still takes the clauses for any goods, so the order goods, situation, slots loses none.
    fitting = [c for c in clauses if c.fits(prompt.tone, have, prompt.goods, prompt.situation)]
    goods = prompt.goods if any(c.goods for c in fitting) else "general"
    told = {tag for c in fitting for tag in c.situation}
    asked = {slot for c in clauses for slot in (*c.slots, *c.unless)}
    return msgspec.structs.replace(
        prompt,
        goods=goods,
        situation=tuple(tag for tag in prompt.situation if tag in told),
        slots=tuple(slot for slot in prompt.slots if slot in asked),
    )


def render(prompt: Prompt) -> str:
    """The very text before the draft: four short lines, 25-45 tokens. Training and writing use this one function."""
    return f"{shared(prompt)}Goods: {_spoken(prompt.goods)}\nSituation: {_listed([_spoken(tag) for tag in prompt.situation])}\n\n"


def shared(prompt: Prompt) -> str:
    """The beginning of ``render``, which is the same for all goods and situations: the engine computes it once."""
    return f"Trigger: {_spoken(prompt.trigger)}, {prompt.tone}\nCustomer: {prompt.about or 'not known yet'}\n"


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
