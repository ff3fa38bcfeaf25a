"""Features of one customer: each event updates them in place, decays are applied lazily. ``models.customer.known`` reads them."""

from __future__ import annotations

import hashlib
import math
import re
from zlib import crc32

from models.customer.local_time import EPOCH_WEEKDAY, local, local_day
from models.customer.state import (
    BOUGHT_BITS,
    GRID,
    KEPT_CATEGORIES,
    MOST_CATEGORIES,
    MOST_COUNT,
    WIDTH,
    Category,
    CustomerState,
    Mix,
    StandingState,
    Visits,
    numbers,
    pack,
    row,
)
from models.learning.replenishment import FEWEST_GAPS, STEADIEST, variation
from schemas.events import MAX_AHEAD, Event, Item

DAY = 86400.0
LONG = 90.0  # days, of everything about orders and categories
LONG_SECONDS = LONG * DAY
WEEKDAY_HALF_LIFE = 120.0  # days
EWMA = 0.2  # of the newest gap
PRIOR_GAP = 7.0  # days between visits, before a customer shows their own
LONGEST_KIND, LONGEST_NAME = 64, 80  # characters kept of a category's and a product's name
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
_ADDRESS = re.compile(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s.\x00-\x1f]+")


def decay(value: float, days: float, half_life: float) -> float:
    """``value`` after ``days`` (never negative)."""
    return float(value * 2.0 ** (-max(days, 0.0) / half_life))


def apply(state: CustomerState, event: Event, fallback_zone: str) -> None:
    """Update every feature by one event, in place."""
    kind = event.kind
    if kind not in NOT_A_VISIT:
        _visit(state, event.at, fallback_zone)
    if kind == "Order Completed":
        _order(state, event)
    elif kind == "Order Refunded":
        state.orders.refunded = max(state.orders.refunded, event.at)
    elif kind == "Coupon Applied":
        state.orders.applied = True  # counts with its order, which may name it once more
    elif kind in ("Email Opened", "Email Link Clicked"):
        mail = state.mail
        mail.opened += kind == "Email Opened"
        mail.clicked += kind == "Email Link Clicked"
        mail.last = max(mail.last, event.at)
    elif kind == "Support Ticket Opened":
        state.mail.tickets += 1
    elif kind == "Support Ticket Closed":
        state.mail.tickets = max(0, state.mail.tickets - 1)


def _visit(state: CustomerState, at: float, fallback_zone: str) -> None:
    visits, place = state.visits, state.standing.timezone
    if not visits.count:
        visits.first = visits.last = at
        visits.count = 1
        visits.week = visits.month = visits.quarter = 1.0
        _weekday(visits, at, place, fallback_zone, 1.0)
        return
    today = local_day(at, place, fallback_zone)
    if at <= visits.last or today == local_day(visits.last, place, fallback_zone):
        visits.first = min(visits.first, at)
        visits.last = max(visits.last, at)
        return
    for pending in state.pending:
        # The same day's further events belong to the visit at which the decision was made.
        if not pending.returned and at > pending.at and today != local_day(pending.at, place, fallback_zone):
            pending.returned = at
    days = (at - visits.last) / DAY
    visits.count += 1
    visits.gap_sum += days
    visits.gap_squares += days * days
    visits.gap_last = days
    visits.gap_ew = days if visits.count == 2 else (1 - EWMA) * visits.gap_ew + EWMA * days
    visits.week = decay(visits.week, days, 7.0) + 1.0
    visits.month = decay(visits.month, days, 30.0) + 1.0
    visits.quarter = decay(visits.quarter, days, 90.0) + 1.0
    visits.last = at
    _weekday(visits, at, place, fallback_zone, decay(1.0, days, WEEKDAY_HALF_LIFE))


def _weekday(visits: Visits, at: float, place: str, fallback_zone: str, factor: float) -> None:
    day, seconds = divmod(local(at, place, fallback_zone), DAY)
    weekdays, dayparts = [value * factor for value in visits.weekdays], [value * factor for value in visits.dayparts]
    weekdays[(int(day) + EPOCH_WEEKDAY) % 7] += 1.0
    dayparts[int(seconds // (DAY / 4))] += 1.0
    visits.profile(weekdays, dayparts)


def _fade(state: CustomerState, at: float) -> None:
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


def _order(state: CustomerState, event: Event) -> None:
    said, orders = event.properties, state.orders
    _fade(state, event.at)
    weight = decay(1.0, (orders.last - event.at) / DAY, LONG)  # 1, unless the order comes late
    total = next((value for value in (said.total, said.revenue, said.value) if value is not None), None)
    if total is None:
        total = _sum(said.products)
    orders.count += 1
    orders.total += total
    if event.at >= orders.last:
        orders.last_value = total
        orders.last_lines = len(said.products)
    orders.decayed += weight
    orders.value += weight * total
    orders.discount += weight * (said.discount or 0.0)
    orders.coupons += weight * (bool(said.coupon) or orders.applied)
    orders.applied = False
    orders.lines += weight * len(said.products)
    orders.own_brand += weight * sum(item.brand.lower() in ("private", "own") for item in said.products)
    if said.products:
        _goods(state, said.products, event.at)


def _sum(products: list[Item]) -> float:
    return sum((item.price or 0.0) * (1.0 if item.quantity is None else item.quantity) for item in products)


def _goods(state: CustomerState, products: list[Item], at: float) -> None:
    mix, kinds, now = state.mix, state.categories, int(at)
    _age(mix, now)
    scale = 2.0 ** ((now - mix.last) / LONG_SECONDS)  # 1, unless the event is late
    for item in products:
        name = item.category[:LONGEST_KIND]  # a producer's novel is cut
        if not name:
            continue
        found = kinds.get(name)
        if found is None:
            kinds[name] = row(GRID, 1, 0, 0, now)
            _weigh(mix, 0.0, GRID * scale)
            state.bought = bought_with(state.bought, name)
            continue
        count, days, gap_sum, gap_squares, last = numbers(found)
        if now - last >= DAY / 2:  # else the same basket, or the same day: one buying-day
            left = count * 2.0 ** ((last - now) / LONG_SECONDS)
            count, days, hours = min(round(left) + GRID, MOST_COUNT), days + 1, round((now - last) / 3600)
            gap_sum, gap_squares = gap_sum + hours, gap_squares + hours * hours
            _weigh(mix, left * scale, count * scale)
            found = kinds[name] = row(count, days, gap_sum, gap_squares, now) + found[WIDTH:]
        if days > FEWEST_GAPS:
            # Only what has a rhythm is ever reminded of: see ``models.learning.replenishment.in_window``.
            steady = variation(gap_sum, gap_squares, days - 1) < STEADIEST
            kinds[name] = found[:WIDTH] + ((_product(item) or found[WIDTH:]) if steady else b"")
    if len(kinds) > MOST_CATEGORIES:
        _forget(mix, kinds)


def _product(item: Item) -> bytes:
    """The product that a reminder may name; nothing where a producer's novel would fill the state."""
    number = item.product_id or item.sku
    return pack((number, item.name, item.price)) if 0 < len(item.name) <= LONGEST_NAME and len(number) <= LONGEST_KIND else b""


def _forget(mix: Mix, kinds: dict[str, bytes]) -> None:
    """Let the least bought kinds go."""
    known = {name: Category.of(found) for name, found in kinds.items()}
    # The logarithm of the weight, but for a part that is the same for all kinds.
    ranks = {name: math.log2(kind.buys) + kind.last / LONG_SECONDS for name, kind in known.items()}
    for name in sorted(ranks, key=ranks.__getitem__)[: len(kinds) - KEPT_CATEGORIES]:
        del kinds[name]
        _weigh(mix, known[name].buys * 2.0 ** ((known[name].last - mix.last) / LONG_SECONDS), 0.0)


def _age(mix: Mix, now: int) -> None:
    """Bring the sums to ``now``."""
    if now > mix.last:
        if mix.total > 0:
            factor = 2.0 ** ((mix.last - now) / LONG_SECONDS)
            mix.total *= factor
            mix.logs = factor * mix.logs + mix.total * math.log(factor)
        mix.last = now


def _weigh(mix: Mix, before: float, after: float) -> None:
    """A kind's weight has changed."""
    mix.total += after - before
    mix.logs += (after * math.log(after) if after else 0.0) - (before * math.log(before) if before else 0.0)


def bought_with(sieve: bytes, name: str) -> bytes:
    """The sieve of kinds ever bought, with one more."""
    place = crc32(name.encode("utf-8", "replace")) % BOUGHT_BITS
    bits = bytearray(sieve or bytes(BOUGHT_BITS // 8))
    bits[place >> 3] |= 1 << (place & 7)
    return bytes(bits)


def ever_bought(state: CustomerState, name: str) -> bool:
    """Whether the customer bought this kind, one forgotten since among them; of a kind never bought, seldom a wrong yes."""
    if name in state.categories:
        return True
    place = crc32(name.encode("utf-8", "replace")) % BOUGHT_BITS
    return bool(state.bought) and bool(state.bought[place >> 3] >> (place & 7) & 1)


def standing(state: CustomerState, event: Event) -> bool:
    """Update consent, address and objections; whether anything that the gate must know changed.

    What was said last counts, by the events' own times: one that lay in a foreign partition may come late.
    An objection is believed before a permission where clocks may be to blame.
    """
    own = state.standing
    before = (own.consent, own.address, own.unsubscribed, own.bounced, own.complained, own.timezone)
    if event.kind == "identify" and event.traits is not None:
        _identify(own, event.traits, event.at)
    elif event.kind in ("Subscribed", "Unsubscribed"):
        wanted = event.kind == "Subscribed"
        _consent(own, wanted, event.at)
        if _newer(event.at, own.subscribed_at, objection=not wanted):
            own.unsubscribed, own.subscribed_at = not wanted, max(event.at, own.subscribed_at)
    elif event.kind == "Email Bounced":
        own.bounced = True
    elif event.kind == "Email Marked as Spam":
        own.complained = True
    return before != (own.consent, own.address, own.unsubscribed, own.bounced, own.complained, own.timezone)


def _newer(at: float, said: float, objection: bool) -> bool:
    return at >= (said - MAX_AHEAD if objection else said)


def _consent(own: StandingState, consent: bool, at: float) -> None:
    if _newer(at, own.consent_at, objection=not consent):
        own.consent, own.consent_at = consent, max(at, own.consent_at)


def marketing(consent: object) -> bool | None:
    """Whether the trait ``consent`` asks for marketing mail; None where it says nothing of it. Only a plain ``true`` is a yes."""
    if isinstance(consent, dict):
        return consent["marketing"] is True if "marketing" in consent else None
    return None if consent else False


def _identify(own: StandingState, traits: dict[str, object], at: float) -> None:
    email = traits.get("email")
    if "email" in traits and at >= own.mailbox_at:
        if isinstance(email, str):
            own.address, own.mailbox_at = bool(_ADDRESS.fullmatch(email.strip())), at
            mailbox = int.from_bytes(hashlib.blake2b(email.strip().lower().encode("utf-8", "replace"), digest_size=4).digest(), "big")
            if own.mailbox != mailbox:
                own.mailbox, own.bounced = mailbox, False  # another mailbox has not bounced yet
        elif email is None:
            own.address, own.mailbox_at = False, at
    if "consent" in traits and (wanted := marketing(traits["consent"])) is not None:
        _consent(own, wanted, at)
    late = at < own.identified_at
    timezone, locale = traits.get("timezone"), traits.get("locale")
    if isinstance(timezone, str) and len(timezone) < 64 and not (late and own.timezone):
        own.timezone = timezone
    if isinstance(locale, str) and len(locale) < 16 and not late:
        own.locale = locale
    own.identified_at = max(own.identified_at, at)
