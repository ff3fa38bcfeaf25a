"""What a mail was worth, and how much an example counts: written down here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

WORTH: Mapping[str, float] = {
    "opened": 0.25,
    "clicked": 1.0,
    "ordered": 1.5,
    "bounced": 0.0,
    "unsubscribed": -1.5,
    "complained": -3.0,
    "erased": 0.0,
}
OBJECTIONS = frozenset({"unsubscribed", "complained", "erased"})  # whoever does one of these is learned from no more
TEMPERATURE = 1.0  # of the advantage, in units of the rewards' own spread: single mails spread by 0.5, means of many far less
LIGHTEST, HEAVIEST = 0.1, 5.0  # clipping: one lucky mail must not steer a cluster
PROPENSITY_CLIP = 2.0  # a clause drawn rarely counts at most this much more than one drawn often


def reward(kinds: Iterable[str]) -> float:
    """Worth of one mail from what followed it: the best of open, click and order, less its objections.

    >>> reward(["opened", "clicked"])
    1.0
    >>> reward([])
    0.0
    """
    seen = set(kinds)
    good = max((WORTH[kind] for kind in seen if WORTH.get(kind, 0.0) > 0), default=0.0)
    return good + sum(WORTH[kind] for kind in seen if WORTH.get(kind, 0.0) < 0)


def weights(rewards: Sequence[float], propensities: Sequence[float]) -> list[float]:
    """Weight of each example, mean 1.

    Advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177) with the
    propensity that the writer logged as an importance weight, both clipped.
    ``propensities`` are geometric means over a mail's clauses, in (0, 1].
    """
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    spread = math.sqrt(sum((worth - mean) ** 2 for worth in rewards) / len(rewards)) or 1.0
    typical = math.exp(sum(math.log(max(p, 1e-6)) for p in propensities) / len(propensities))
    raw = []
    for worth, propensity in zip(rewards, propensities, strict=True):
        advantage = math.exp(min((worth - mean) / (TEMPERATURE * spread), 50.0))  # clipped below; only not to overflow
        importance = min(max(typical / max(propensity, 1e-6), 1 / PROPENSITY_CLIP), PROPENSITY_CLIP)
        raw.append(min(max(advantage * importance, LIGHTEST), HEAVIEST))
    total = sum(raw)
    return [weight * len(raw) / total for weight in raw]
