"""What intake tells the learners on ``model.vectors``, and what is published back: ``model.rhythm``, ``model.items``, ``model.tones``."""

from __future__ import annotations

import msgspec


class Vector(msgspec.Struct, frozen=True, tag="vector"):
    """A customer's five cluster features, raw: log mean gap (days), log basket value, category entropy, coupon share, own-brand share."""

    customer: str
    values: tuple[float, ...]
    at: str


class Visit(msgspec.Struct, frozen=True, tag="visit"):
    """A matured row of the visit model: what was known at a decision, and whether a visit followed within 7, 14 and 30 days."""

    customer: str
    features: tuple[float, ...]
    labels: tuple[bool | None, ...]
    at: str


class Basket(msgspec.Struct, frozen=True, tag="basket"):
    """One order by category: those bought for the first time, those owned before, and the products in each (JSON of ``Product``).

    ``first_seen``: seconds since the epoch of the customer's first event.
    """

    customer: str
    new: tuple[str, ...]
    owned: tuple[str, ...]
    products: dict[str, tuple[str, ...]]
    at: str
    first_seen: float = 0.0


class Forgotten(msgspec.Struct, frozen=True, tag="forgotten"):
    """A customer objected: whatever is kept of that one goes, and no more comes (GDPR art. 21)."""

    customer: str
    at: str


Learning = Vector | Visit | Basket | Forgotten


class RhythmWeights(msgspec.Struct, frozen=True):
    """Logistic weights over raw features (scaling folded in), for 7, 14 and 30 days."""

    epoch: int
    weights: tuple[tuple[float, ...], ...]
    intercepts: tuple[float, ...]
    learned: int = 0


class ItemsSnapshot(msgspec.Struct, frozen=True):
    """Neighbours and popularity of each category, its favourite product (JSON of ``Product``), and its buyers' mean gap (days)."""

    epoch: int
    neighbours: dict[str, tuple[tuple[str, float], ...]]
    popularity: dict[str, float]
    favourites: dict[str, str]
    prior_gap: dict[str, float]
    learned: int = 0


class ToneChances(msgspec.Struct, frozen=True):
    """Topic ``model.tones``, key = cluster: the chance that intake gives each tone. ``answers``: mails that it was learned from."""

    cluster: str
    chances: dict[str, float]
    answers: int
    at: str
