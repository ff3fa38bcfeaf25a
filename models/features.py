"""Features of one customer: each event updates them in place, decays are applied lazily.

Half-lives and the visit model's inputs are those measured in docs/relevance.md.
"""

from __future__ import annotations

import hashlib
import math
import re
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from models.state import CATEGORIES, Category, State
from schemas.events import Event, Item

DAY = 86400.0
HALF_LIVES = (7.0, 30.0, 90.0)  # days
LONG = 90.0  # days, of everything about orders and categories
WEEKDAY_HALF_LIFE = 120.0  # days
EWMA = 0.2  # of the newest gap
PRIOR_GAP = 7.0  # days between visits, before a customer shows their own
NOT_A_VISIT = frozenset(
    {
        "identify",
        "Email Opened",
        "Email Bounced",
        "Email Marked as Spam",
        "Unsubscribed",
        "Subscribed",
        "Product Back In Stock",
        "Price Dropped",
    }
)
NAMES = (
    "orders orders_30d orders_90d visits visits_7d visits_30d visits_90d days_since_order days_since_visit "
    "days_since_first mean_gap gap_cv last_gap basket_mean basket_last spent discount_share coupon_share "
    "own_brand_share category_entropy categories emails_opened emails_clicked tickets_open consent p_visit_7d "
    "p_visit_14d p_visit_30d ordered_since visited_since refunded_since category_bought_since"
).split()
_ADDRESS = re.compile(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s.\x00-\x1f]+")
_CENT = 0.01


def decay(value: float, days: float, half_life: float) -> float:
    """``value`` after ``days`` (never negative)."""
    return float(value * 2.0 ** (-max(days, 0.0) / half_life))


@lru_cache(maxsize=1024)
def zone(name: str, fallback: str = "UTC") -> ZoneInfo:
    """The IANA zone, or the fallback where there is no such zone."""
    try:
        return ZoneInfo(name or fallback)
    except (KeyError, ValueError, OSError):
        return ZoneInfo(fallback)


def apply(state: State, event: Event, fallback_zone: str) -> None:
    """Update every feature by one event, in place."""
    if event.kind not in NOT_A_VISIT:
        _visit(state, event.at, fallback_zone)
    if event.kind == "Order Completed":
        _order(state, event)
    elif event.kind == "Order Refunded":
        state.orders.refunded = max(state.orders.refunded, event.at)
    elif event.kind == "Coupon Applied":
        # As of the last order, whose time must not move: a coupon in the basket is no order yet.
        last = state.orders.last
        state.orders.coupons += 2.0 ** ((event.at - last) / DAY / LONG) if last else 1.0
    elif event.kind == "Email Opened":
        state.mail.opened += 1
        state.mail.last = max(state.mail.last, event.at)
    elif event.kind == "Email Link Clicked":
        state.mail.clicked += 1
        state.mail.last = max(state.mail.last, event.at)
    elif event.kind == "Support Ticket Opened":
        state.mail.tickets += 1
    elif event.kind == "Support Ticket Closed":
        state.mail.tickets = max(0, state.mail.tickets - 1)


def _visit(state: State, at: float, fallback_zone: str) -> None:
    visits = state.visits
    for pending in state.pending:
        # The same day's further events belong to the visit at which the decision was made.
        if not pending.returned and at > pending.at and local_day(at, state, fallback_zone) != local_day(pending.at, state, fallback_zone):
            pending.returned = at
    if not visits.count:
        visits.first = visits.last = at
        visits.count = 1
        visits.decayed = [1.0, 1.0, 1.0]
        visits.weekdays, visits.dayparts = [0.0] * 7, [0.0] * 4
    elif local_day(at, state, fallback_zone) == local_day(visits.last, state, fallback_zone) or at <= visits.last:
        visits.first = min(visits.first, at)
        visits.last = max(visits.last, at)
        return
    else:
        days = (at - visits.last) / DAY
        visits.count += 1
        visits.gap_sum += days
        visits.gap_squares += days * days
        visits.gap_last = days
        visits.gap_ew = days if visits.count == 2 else (1 - EWMA) * visits.gap_ew + EWMA * days
        visits.decayed = [decay(value, days, half) + 1.0 for value, half in zip(visits.decayed, HALF_LIVES, strict=True)]
        visits.weekdays = [decay(value, days, WEEKDAY_HALF_LIFE) for value in visits.weekdays]
        visits.dayparts = [decay(value, days, WEEKDAY_HALF_LIFE) for value in visits.dayparts]
        visits.last = at
    local = datetime.fromtimestamp(at, zone(state.standing.timezone, fallback_zone))
    visits.weekdays[local.weekday()] += 1.0
    visits.dayparts[local.hour // 6] += 1.0


def local_day(at: float, state: State, fallback_zone: str) -> int:
    """The customer's calendar day, as a number."""
    return datetime.fromtimestamp(at, zone(state.standing.timezone, fallback_zone)).toordinal()


def _fade(state: State, at: float) -> None:
    """Bring what is decayed in ``orders`` to ``at``."""
    orders = state.orders
    days = (at - orders.last) / DAY if orders.last else 0.0
    if days > 0:
        factor = 2.0 ** (-days / LONG)
        orders.decayed *= factor
        orders.value *= factor
        orders.discount *= factor
        orders.coupons *= factor
        orders.own_brand *= factor
        orders.lines *= factor
    orders.last = max(orders.last, at)


def _order(state: State, event: Event) -> None:
    said, orders = event.properties, state.orders
    _fade(state, event.at)
    total = next((value for value in (said.total, said.revenue, said.value) if value is not None), _sum(said.products))
    orders.count += 1
    orders.total += total
    orders.last_value = total
    orders.last_lines = len(said.products)
    orders.decayed += 1.0
    orders.value += total
    orders.discount += said.discount or 0.0
    orders.coupons += bool(said.coupon)
    orders.lines += len(said.products)
    orders.own_brand += sum(item.brand.lower() in ("private", "own") for item in said.products)
    for item in said.products:
        if item.category:
            _category(state, item, event.at)
    if len(state.categories) > CATEGORIES:
        weakest = sorted(state.categories, key=lambda name: _weight(state.categories[name], event.at))
        for name in weakest[: len(state.categories) - CATEGORIES]:
            del state.categories[name]


def _sum(products: list[Item]) -> float:
    return sum((item.price or 0.0) * (1.0 if item.quantity is None else item.quantity) for item in products)


def _weight(category: Category, at: float) -> float:
    return decay(category.count, (at - category.last) / DAY, LONG)


def _category(state: State, item: Item, at: float) -> None:
    found = state.categories.get(item.category)
    if found is None:
        found = state.categories[item.category] = Category(1.0, 1, 0.0, 0.0, at)
    elif at - found.last >= DAY / 2:  # the same basket, or the same day: one buying-day
        days = (at - found.last) / DAY
        found.count = decay(found.count, days, LONG) + 1.0
        found.days += 1
        found.gap_sum += days
        found.gap_squares += days * days
        found.last = at
    found.product_id, found.name, found.price = item.product_id or item.sku, item.name, item.price


def standing(state: State, event: Event) -> bool:
    """Update consent, address and objections; whether anything that the gate must know changed."""
    own = state.standing
    before = (own.consent, own.address, own.unsubscribed, own.bounced, own.complained, own.timezone)
    if event.kind == "identify" and event.traits is not None:
        _identify(state, event.traits)
    elif event.kind == "Subscribed":
        own.consent, own.unsubscribed = True, False
    elif event.kind == "Unsubscribed":
        own.consent, own.unsubscribed = False, True
    elif event.kind == "Email Bounced":
        own.bounced = True
    elif event.kind == "Email Marked as Spam":
        own.complained = True
    return before != (own.consent, own.address, own.unsubscribed, own.bounced, own.complained, own.timezone)


def _identify(state: State, traits: dict[str, object]) -> None:
    own = state.standing
    email = traits.get("email")
    if isinstance(email, str):
        own.address = bool(_ADDRESS.fullmatch(email.strip()))
        mailbox = int.from_bytes(hashlib.blake2b(email.strip().lower().encode("utf-8", "replace"), digest_size=4).digest(), "big")
        if own.mailbox != mailbox:
            own.mailbox, own.bounced = mailbox, False  # another mailbox has not bounced yet
    elif "email" in traits and email is None:
        own.address = False
    consent = traits.get("consent")
    if isinstance(consent, dict) and isinstance(consent.get("marketing"), bool):
        own.consent = consent["marketing"]
    timezone, locale = traits.get("timezone"), traits.get("locale")
    if isinstance(timezone, str) and len(timezone) < 64:
        own.timezone = timezone
    if isinstance(locale, str) and len(locale) < 16:
        own.locale = locale


def named(state: State, now: float, since: float = math.inf, category: str = "") -> dict[str, float]:
    """Every name that a condition may use. ``since``: when the trigger began, for the names that end so."""
    visits, orders = state.visits, state.orders
    gaps = max(0, visits.count - 1)
    mean = visits.gap_sum / gaps if gaps else 0.0
    silence = (now - visits.last) / DAY if visits.count else 9999.0
    week, month, quarter = (decay(value, silence, half) for value, half in zip(visits.decayed, HALF_LIVES, strict=True))
    days = (now - orders.last) / DAY if orders.count else 9999.0
    bought = state.categories.get(category)
    chances = state.chances or [0.0, 0.0, 0.0]
    return {
        "orders": orders.count,
        "orders_30d": decay(orders.decayed, days, 30.0),
        "orders_90d": decay(orders.decayed, days, LONG),
        "visits": visits.count,
        "visits_7d": week,
        "visits_30d": month,
        "visits_90d": quarter,
        "days_since_order": days,
        "days_since_visit": silence,
        "days_since_first": (now - visits.first) / DAY if visits.count else 0.0,
        "mean_gap": mean,
        "gap_cv": _cv(visits.gap_sum, visits.gap_squares, gaps),
        "last_gap": visits.gap_last,
        "basket_mean": orders.total / orders.count if orders.count else 0.0,
        "basket_last": orders.last_value,
        "spent": orders.total,
        "discount_share": orders.discount / orders.value if orders.value > _CENT else 0.0,
        "coupon_share": min(1.0, orders.coupons / orders.decayed) if orders.decayed else 0.0,
        "own_brand_share": orders.own_brand / orders.lines if orders.lines else 0.0,
        "category_entropy": entropy(state, now),
        "categories": len(state.categories),
        "emails_opened": state.mail.opened,
        "emails_clicked": state.mail.clicked,
        "tickets_open": state.mail.tickets,
        "consent": state.standing.consent and not state.standing.unsubscribed,
        "p_visit_7d": chances[0],
        "p_visit_14d": chances[1],
        "p_visit_30d": chances[2],
        "ordered_since": orders.count > 0 and orders.last > since,
        "visited_since": visits.count > 0 and visits.last > since,
        "refunded_since": orders.refunded > since,
        "category_bought_since": bought is not None and bought.last > since,
    }


def _cv(total: float, squares: float, n: int) -> float:
    """Coefficient of variation; 9 where there are too few to say."""
    if n < 2 or total <= 0:
        return 9.0
    mean = total / n
    return math.sqrt(max(0.0, squares / n - mean * mean)) / mean


def gap_cv(category: Category) -> float:
    """Of the days between purchases of this kind."""
    return _cv(category.gap_sum, category.gap_squares, category.days - 1)


def entropy(state: State, now: float) -> float:
    """Shannon entropy (nats) of the decayed category mix."""
    weights = [_weight(category, now) for category in state.categories.values()]
    total = sum(weights)
    return -sum(w / total * math.log(w / total) for w in weights if w > 0) if total > 0 else 0.0


def cluster_vector(state: State, now: float) -> tuple[float, ...]:
    """The five raw features of a cluster: log mean gap, log basket value, category entropy, log coupon share, own-brand share."""
    visits, orders = state.visits, state.orders
    gaps = max(0, visits.count - 1)
    gap = (visits.gap_sum + 2 * PRIOR_GAP) / (gaps + 2)
    value = orders.value / orders.decayed if orders.decayed > 0 else 0.0
    coupons = min(1.0, orders.coupons / orders.decayed) if orders.decayed > 0 else 0.0
    own = orders.own_brand / orders.lines if orders.lines > 0 else 0.0
    return (math.log(gap), math.log1p(max(0.0, value)), entropy(state, now), math.log1p(100 * coupons), own)


def visit_vector(state: State, now: float, fallback_zone: str) -> list[float]:
    """Inputs of the visit model at ``now`` (RELEVANCE's "LR all"): 24 numbers, those of a customer seen at least once."""
    visits, orders = state.visits, state.orders
    silence, age = max(0.0, (now - visits.last) / DAY), max(0.0, (now - visits.first) / DAY)
    gaps = max(0, visits.count - 1)
    gap = (visits.gap_sum + 2 * PRIOR_GAP) / (gaps + 2)
    rates = [
        (decay(value, silence, half) + 1) / (half / math.log(2) * (1 - 2 ** (-(age + 1) / half)) + PRIOR_GAP)
        for value, half in zip(visits.decayed, HALF_LIVES, strict=True)
    ]
    mean = orders.total / orders.count if orders.count else 0.0
    weekdays = sum(visits.weekdays)
    tomorrow = (datetime.fromtimestamp(now, zone(state.standing.timezone, fallback_zone)).weekday() + 1) % 7
    return [
        math.log1p(silence),
        math.log(gap),
        math.log1p(silence / gap),
        min(silence / visits.gap_ew, 6.0) if visits.gap_ew else 1.0,
        min(_cv(visits.gap_sum, visits.gap_squares, gaps), 4.0),
        *(math.log(rate) for rate in rates),
        math.log1p(age),
        math.log(max(1, visits.count)),
        float(gaps < 3),
        math.log((max(0.0, orders.last_value) + 5) / (max(0.0, mean) + 5)),
        math.log1p(max(0.0, mean)),
        (visits.weekdays[tomorrow] + 1) / (weekdays + 7),
        *(float(day == tomorrow) for day in range(7)),
    ]
