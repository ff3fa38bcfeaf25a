"""What the model is told: everything that words may depend on, and nothing that names a person or a number."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from schemas.mail import Intent


class Prompt(msgspec.Struct, frozen=True):
    """One context. Many customers share the exact same one: it keys the draft pool."""

    trigger: str
    tone: str
    locale: str
    cluster: str
    about: str  # the description of the cluster
    goods: str  # a phrase book group
    situation: tuple[str, ...]
    slots: tuple[str, ...]  # facts that this mail has, sorted
    bands: tuple[tuple[str, str], ...]


def slots_of(intent: Intent) -> tuple[str, ...]:
    """Names of the slots that the intent's facts can fill, sorted. Those that every mail has aren't among them."""
    found = {name for name, value in intent.facts.values.items() if value}
    for number, product in enumerate(intent.facts.products[:3], start=1):
        found.add(f"product_{number}")
        if product.price is not None:
            found.add(f"price_{number}")
    if intent.facts.products and intent.facts.products[0].category:
        found.add("category")
    return tuple(sorted(found))


def prompt_of(intent: Intent, description: str = "") -> Prompt:
    """The prompt of an intent; ``description`` is its cluster's, from the newest snapshot."""
    goods = next((p.goods for p in intent.facts.products if p.goods), "general")
    return Prompt(
        trigger=intent.trigger,
        tone=intent.tone or "warm",
        locale=intent.locale,
        cluster=intent.cluster,
        about=description,
        goods=goods,
        situation=tuple(sorted(intent.facts.situation)),
        slots=slots_of(intent),
        bands=tuple(sorted(intent.facts.bands.items())),
    )


def render(prompt: Prompt) -> str:
    """The very text before the draft: five short lines, 40-80 tokens. Training and writing use this one function."""
    lines = [
        f"Trigger: {_spoken(prompt.trigger)}, tone {prompt.tone}",
        f"Customer: {prompt.about or 'not known yet'}",
        f"Goods: {_spoken(prompt.goods)}",
        f"Situation: {_listed([*map(_spoken, prompt.situation), *(f'{_spoken(k)} {v}' for k, v in prompt.bands)])}",
        f"Facts: {_listed(prompt.slots)}",
    ]
    return "\n".join(lines) + "\n\n"


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
