"""A cluster in words that a marketer reads: "coupon users, a small basket every 6 days"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

# (feature, sign, noun): the trait that stands out most names the cluster.
NOUNS = (
    ("coupon_share", 1.0, "coupon users"),
    ("own_brand_share", 1.0, "own-brand buyers"),
    ("log_basket", 1.0, "stock-up shoppers"),
    ("category_entropy", -1.0, "shoppers for a few things"),
    ("category_entropy", 1.0, "shoppers across the range"),
    ("log_gap", -1.0, "frequent shoppers"),
    ("log_gap", 1.0, "occasional shoppers"),
)
STANDS_OUT = 0.4  # standard deviations from the mean
_OFTEN = re.compile(r" every (?:day|\d+ days|\d+ months)$")


def describe(centres: Sequence[Mapping[str, float]], raws: Sequence[Mapping[str, float]]) -> list[str]:
    """One description a cluster, from standardised and raw centres; no two alike unless the clusters are."""
    said: list[str] = []
    for centre, raw in zip(centres, raws, strict=True):
        nouns = _nouns(centre)
        options = [f"{noun}, {_habit(centre, raw)}" for noun in nouns] + [f"{' and '.join(nouns[:2])}, {_habit(centre, raw)}"]
        said.append(next((text for text in options if text not in said), options[0]))
    return said


def _nouns(centre: Mapping[str, float]) -> list[str]:
    found = sorted(((sign * centre.get(name, 0.0), noun) for name, sign, noun in NOUNS), reverse=True)
    return [noun for strength, noun in found if strength >= STANDS_OUT] or ["regular shoppers"]


def _habit(centre: Mapping[str, float], raw: Mapping[str, float]) -> str:
    size = centre.get("log_basket", 0.0)
    basket = "a small basket" if size < -0.3 else "a big basket" if size > 0.5 else "a medium basket"
    return f"{basket} {_every(math.exp(min(raw.get('log_gap', 0.0), 8.0)))}"


def _every(days: float) -> str:
    whole = round(days)
    return "every day" if whole <= 1 else f"every {whole} days" if whole < 60 else f"every {round(days / 30)} months"


def lasting(description: str) -> str:
    """The description without its rhythm: a centre that moves by a day must not change what the words depend on."""
    return _OFTEN.sub("", description)
