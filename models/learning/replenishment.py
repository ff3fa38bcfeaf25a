"""Which kind of goods a customer is about to run out of.

Method (measured in docs/relevance.md): an empirical Bayes hazard. The rate of a
(customer, category) pair is its decayed count over its decayed exposure,
shrunk to the mean gap that buyers of the category have. "Elapsed over own mean
gap" alone, the usual rule of due dates, ranks worse than counting.
"""

from __future__ import annotations

import math

HALF_LIFE = 90.0  # days
DAY = 86400.0
STEADIEST = 0.45  # a gap's coefficient of variation above which there is no rhythm to speak of
EARLIEST, LATEST = 0.75, 1.5  # of elapsed time over own mean gap; past 2 they have most likely left the category
FEWEST_GAPS = 5


def exposure(age_days: float, half_life: float = HALF_LIFE) -> float:
    """Decayed days at risk of a customer first seen ``age_days`` ago."""
    return half_life / math.log(2) * (1.0 - 2.0 ** (-max(age_days, 0.0) / half_life))


def decayed(count: float, elapsed_days: float, half_life: float = HALF_LIFE) -> float:
    """What ``count`` has shrunk to after ``elapsed_days`` without a purchase."""
    return float(count * 2.0 ** (-max(elapsed_days, 0.0) / half_life))


def hazard(count: float, exposure_days: float, prior_gap_days: float, days: float = 7.0) -> float:
    """Chance of at least one purchase in the next ``days``.

    ``count``: decayed buying-days of the pair; ``exposure_days``: see ``exposure``;
    ``prior_gap_days``: mean days between purchases of the category's buyers.
    """
    rate = (0.5 + count) / (0.5 * max(prior_gap_days, 1.0) + max(exposure_days, 0.0))
    return -math.expm1(-rate * days)


def variation(total: float, squares: float, n: int) -> float:
    """Coefficient of variation; 9 where there are too few to say."""
    mean = total / n if n >= 2 else 0.0
    if not mean > 0:
        return 9.0
    return math.sqrt(max(0.0, squares / n - mean * mean)) / mean


def in_window(gap_cv: float, ratio: float, n_gaps: int) -> bool:
    """Whether a reminder may go: a steady rhythm of enough gaps, and now near its next beat.

    ``ratio``: days since the last purchase over the pair's own mean gap.
    """
    return n_gaps >= FEWEST_GAPS and gap_cv < STEADIEST and EARLIEST <= ratio <= LATEST
