"""What is known of a customer at a moment, by the names that conditions use, and the vectors that the models read.

Half-lives and the visit model's inputs are those measured in docs/relevance.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from models.customer.features import DAY, LONG, PRIOR_GAP, decay
from models.customer.local_time import EPOCH_WEEKDAY, local_day
from models.customer.state import Category, CustomerState
from models.learning.replenishment import variation

_CENT = 0.01
_LEAST, _MOST = 1e-300, 1e300


class Known(Mapping[str, float]):
    """Every name that a condition may use, worked out when it is asked for. ``since``: when the trigger began."""

    __slots__ = ("category", "now", "since", "state")

    def __init__(self, state: CustomerState, now: float, since: float, category: str) -> None:
        self.state, self.now, self.since, self.category = state, now, since, category

    def __getitem__(self, name: str) -> float:
        return _KNOWN[name](self)

    def __iter__(self) -> Iterator[str]:
        return iter(_KNOWN)

    def __len__(self) -> int:
        return len(_KNOWN)


def named(state: CustomerState, now: float, since: float = math.inf, category: str = "") -> Known:
    """What is known of a customer at ``now`` by name; names that end in ``since`` look from there on."""
    return Known(state, now, since, category)


def _visits(decayed: float, half_life: float, known: Known) -> float:
    return decay(decayed, _silence(known), half_life)


def _silence(known: Known) -> float:
    return (known.now - known.state.visits.last) / DAY if known.state.visits.count else 9999.0


def _since_order(known: Known) -> float:
    return (known.now - known.state.orders.last) / DAY if known.state.orders.count else 9999.0


def _chance(known: Known, place: int) -> float:
    return known.state.chances[place] if known.state.chances else 0.0


def _bought_since(known: Known) -> bool:
    row = known.state.categories.get(known.category)
    return row is not None and Category.of(row).last > known.since


_KNOWN: dict[str, Callable[[Known], float]] = {
    "orders": lambda k: k.state.orders.count,
    "orders_30d": lambda k: decay(k.state.orders.decayed, _since_order(k), 30.0),
    "orders_90d": lambda k: decay(k.state.orders.decayed, _since_order(k), LONG),
    "visits": lambda k: k.state.visits.count,
    "visits_7d": lambda k: _visits(k.state.visits.week, 7.0, k),
    "visits_30d": lambda k: _visits(k.state.visits.month, 30.0, k),
    "visits_90d": lambda k: _visits(k.state.visits.quarter, 90.0, k),
    "days_since_order": _since_order,
    "days_since_visit": _silence,
    "days_since_first": lambda k: (k.now - k.state.visits.first) / DAY if k.state.visits.count else 0.0,
    "mean_gap": lambda k: k.state.visits.gap_sum / (k.state.visits.count - 1) if k.state.visits.count > 1 else 0.0,
    "gap_cv": lambda k: variation(k.state.visits.gap_sum, k.state.visits.gap_squares, k.state.visits.count - 1),
    "last_gap": lambda k: k.state.visits.gap_last,
    "basket_mean": lambda k: k.state.orders.total / k.state.orders.count if k.state.orders.count else 0.0,
    "basket_last": lambda k: k.state.orders.last_value,
    "spent": lambda k: k.state.orders.total,
    "discount_share": lambda k: k.state.orders.discount / k.state.orders.value if k.state.orders.value > _CENT else 0.0,
    "coupon_share": lambda k: coupon_share(k.state),
    "own_brand_share": lambda k: own_brand_share(k.state),
    "category_entropy": lambda k: entropy(k.state),
    "categories": lambda k: len(k.state.categories),
    "emails_opened": lambda k: k.state.mail.opened,
    "emails_clicked": lambda k: k.state.mail.clicked,
    "tickets_open": lambda k: k.state.mail.tickets,
    "consent": lambda k: k.state.standing.consent and not k.state.standing.unsubscribed,
    "p_visit_7d": lambda k: _chance(k, 0),
    "p_visit_14d": lambda k: _chance(k, 1),
    "p_visit_30d": lambda k: _chance(k, 2),
    "ordered_since": lambda k: k.state.orders.count > 0 and k.state.orders.last > k.since,
    "visited_since": lambda k: k.state.visits.count > 0 and k.state.visits.last > k.since,
    "refunded_since": lambda k: k.state.orders.refunded > k.since,
    "category_bought_since": _bought_since,
}
NAMES = tuple(_KNOWN)


# States of before numbers had a limit may hold sums that are infinite, or no number. What a model is told is finite all the same,
# and nothing raises: one such customer would stop all others of the partition, for good. The second of max's and min's two stands
# where a NaN may: it loses.


def _least(value: float) -> float:
    """Above nothing and finite."""
    return min(_MOST, max(_LEAST, value))


def _some(value: float) -> float:
    """Not below nothing, and finite."""
    return min(_MOST, max(0.0, value))


def coupon_share(state: CustomerState) -> float:
    """Of the decayed orders, those with a coupon."""
    return min(1.0, _some(state.orders.coupons / state.orders.decayed)) if state.orders.decayed else 0.0


def own_brand_share(state: CustomerState) -> float:
    """Of the decayed order lines, those of the shop's own brand."""
    return min(1.0, _some(state.orders.own_brand / state.orders.lines)) if state.orders.lines else 0.0


def entropy(state: CustomerState) -> float:
    """Shannon entropy (nats) of the decayed category mix. All kinds decay alike, so it does not depend on when it is asked."""
    total, logs = state.mix.total, state.mix.logs
    return _some(math.log(total) - logs / total) if total > 0 else 0.0


def cluster_vector(state: CustomerState) -> tuple[float, ...]:
    """The five raw features of a cluster: log mean gap, log basket value, category entropy, log coupon share, own-brand share."""
    visits, orders = state.visits, state.orders
    gaps = max(0, visits.count - 1)
    gap = _least((visits.gap_sum + 2 * PRIOR_GAP) / (gaps + 2))
    value = _some(orders.value / orders.decayed) if orders.decayed > 0 else 0.0
    return (math.log(gap), math.log1p(value), entropy(state), math.log1p(100 * coupon_share(state)), own_brand_share(state))


def visit_vector(state: CustomerState, now: float, fallback_zone: str) -> list[float]:
    """Inputs of the visit model at ``now`` (RELEVANCE's "LR all"): 24 numbers, those of a customer seen at least once."""
    visits, orders = state.visits, state.orders
    silence, age = _some((now - visits.last) / DAY), _some((now - visits.first) / DAY)
    gaps = max(0, visits.count - 1)
    gap = _least((visits.gap_sum + 2 * PRIOR_GAP) / (gaps + 2))
    mean = _some(orders.total / orders.count) if orders.count else 0.0
    weekdays = [_some(value) for value in visits.weekdays]
    tomorrow = (local_day(now, state.standing.timezone, fallback_zone) + EPOCH_WEEKDAY + 1) % 7
    return [
        math.log1p(silence),
        math.log(gap),
        math.log1p(_some(silence / gap)),
        min(6.0, _some(silence / visits.gap_ew)) if visits.gap_ew else 1.0,
        min(4.0, variation(visits.gap_sum, visits.gap_squares, gaps)),
        _log_rate(visits.week, silence, age, 7.0),
        _log_rate(visits.month, silence, age, 30.0),
        _log_rate(visits.quarter, silence, age, 90.0),
        math.log1p(age),
        math.log(max(1, visits.count)),
        float(gaps < 3),
        math.log(_least((_some(orders.last_value) + 5) / (mean + 5))),
        math.log1p(mean),
        (weekdays[tomorrow] + 1) / (sum(weekdays) + 7),
        *_TOMORROW[tomorrow],
    ]


def _log_rate(decayed: float, silence: float, age: float, half: float) -> float:
    """Logarithm of visits a day, over the decayed days at risk."""
    return math.log((_some(decay(decayed, silence, half)) + 1) / (half / math.log(2) * (1 - 2 ** (-(age + 1) / half)) + PRIOR_GAP))


_TOMORROW = tuple(tuple(float(day == tomorrow) for day in range(7)) for tomorrow in range(7))
