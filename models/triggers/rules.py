"""When a trigger starts, waits, fires and falls silent: plain functions over one customer's state."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from models.customer.features import DAY, ever_bought
from models.customer.known import NAMES, Known, named
from models.customer.local_time import zone
from models.customer.state import GRID, WIDTH, Category, CustomerState, Timer, pack, product_of
from models.learning.items import recommend
from models.learning.replenishment import EARLIEST, LATEST, decayed, exposure, hazard, in_window, variation
from models.mail.facts import complete, of_event, slots_of
from models.phrasebook.book import Book
from models.phrasebook.goods import goods
from models.triggers.conditions import Condition, compile_condition, faults
from schemas.config import ShopSettings, Trigger
from schemas.errors import SettingsError
from schemas.events import KINDS, MAX_AHEAD, Event
from schemas.learning import ItemsSnapshot
from schemas.mail import Facts, Product, decoder

LOOK = "rhythm"  # `on` of the triggers that a regular look at the customer starts
SOUGHT = frozenset({"replenishment", "win_back", "recommendation"})  # kinds that an event would start without what they write about
LONG_SILENCE = 30.0  # days: win-back's rule until the visit model is published
FRESH = 4.0  # days after a visit in which a recommendation still fits
SUGGESTIONS = 20  # asked of the model of goods: some may have been bought long ago
LONGEST_OCCURRENCE = 80
MOST_WAITS = 400  # of one customer at a time: all guests of a shop may be one, and a trigger that may be entered at any time waits for each
BIRTHDAY_HOUR = 9  # local time
_MONTH_DAY = re.compile(r"(?:\d{4}-|--)?(\d\d)-(\d\d)(?:[T ].*)?")
_product = decoder(Product)


@dataclass(frozen=True, slots=True)
class Rule:
    """A trigger with its conditions compiled. ``of_category``: its condition asks about the category of its first product.

    ``needs``: slots without which its chapter of the phrase book has nothing to say.
    """

    trigger: Trigger
    where: Condition
    holds: Condition
    of_category: bool
    needs: frozenset[str]


class Rules:
    """The enabled triggers by priority, and which of them an event may concern. SettingsError names a trigger that can't work."""

    def __init__(self, triggers: Iterable[Trigger]) -> None:
        self.all = compile_rules(triggers)
        self.by_name = {rule.trigger.name: rule for rule in self.all}
        self.looks = [rule for rule in self.all if LOOK in rule.trigger.starts]
        self.begun_by = {kind: tuple(rule for rule in self.all if kind in rule.trigger.starts) for kind in KINDS}
        self.ended_by = {kind: frozenset(rule.trigger.name for rule in self.all if kind in rule.trigger.cancel_on) for kind in KINDS}


def compile_rules(triggers: Iterable[Trigger]) -> list[Rule]:
    """Rules of the enabled triggers, by priority. SettingsError names the trigger and the mend."""
    rules: list[Rule] = []
    needs = {name: chapter.facts for name, chapter in Book.load().chapters.items()}
    names: set[str] = set()
    for trigger in triggers:
        if trigger.name in names:
            raise SettingsError(f"trigger {trigger.name!r} stands twice: give one another name")
        names.add(trigger.name)
        for _key, said in mistakes(trigger):
            raise SettingsError(said)
        where, holds = (compile_condition(text, names, "") for text, names in _conditions(trigger).values())
        if trigger.enabled:
            rules.append(Rule(trigger, where, holds, "category_bought_since" in trigger.condition, needs.get(trigger.name, frozenset())))
    return sorted(rules, key=lambda rule: rule.trigger.priority)


def mistakes(trigger: Trigger) -> Iterator[tuple[str, str]]:
    """Everything that keeps it from working: the key, and a line with the mend."""
    place = f"trigger {trigger.name!r}"
    for name in trigger.starts or ("",):
        if name != LOOK and name not in KINDS:
            yield "on", f"{place}: on = {name!r} is no event{_nearest(name)}; choose among {', '.join(KINDS)} and {LOOK!r}"
    for name in trigger.cancel_on:
        if name not in KINDS:
            yield "cancel_on", f"{place}: cancel_on names {name!r}, which is no event{_nearest(name)}"
    if trigger.kind == "birthday" and trigger.starts != ("identify",):
        yield "kind", f"{place}: kind 'birthday' is told by identify alone: write on = 'identify'"
    if trigger.kind == "birthday" and trigger.wait:
        yield "wait", f"{place}: kind 'birthday' waits for the day itself: take wait away"
    if trigger.kind in SOUGHT and trigger.starts != (LOOK,):
        yield "kind", f"{place}: kind {trigger.kind!r} is found by a look alone: write on = {LOOK!r}"
    if trigger.kind == "coupon" and not trigger.code:
        yield "kind", f"{place}: kind 'coupon' needs a code: write code = 'SAVE5'"
    for key in ("code", "offer"):
        if set(getattr(trigger, key)) & set("{}\r\n"):
            yield key, f"{place}: {key} = {getattr(trigger, key)!r} stands in mails as it is: take braces and line breaks away"
    if trigger.where and trigger.starts == (LOOK,):
        yield "where", f"{place}: where asks about an event, and on = {LOOK!r} has none: write it as condition"
    for key, (text, names) in _conditions(trigger).items():
        yield from ((key, f"{place}, {key}: {text!r}: {said}") for said in faults(text, names))


def _conditions(trigger: Trigger) -> dict[str, tuple[str, Collection[str]]]:
    """The texts of its conditions, by key, and the names that each may use."""
    return {"where": (trigger.where, {*NAMES, *_SAID}), "condition": (trigger.condition, NAMES)}


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, KINDS, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def may_enter(state: CustomerState, trigger: Trigger, now: float) -> bool:
    """Whether the same customer may enter this trigger again."""
    before = state.entered.get(trigger.name)
    return before is None or now - before >= trigger.re_entry


def started(state: CustomerState, event: Event, rules: Rules, shop: ShopSettings) -> None:
    """Start the waits that this event begins, ``MOST_WAITS`` at most, and end those that it cancels, in place."""
    ended = rules.ended_by[event.kind]
    if ended and state.waiting:
        state.timers[:] = [timer for timer in state.timers if timer.trigger not in ended or not ends(event.at, timer.since)]
    for rule in rules.begun_by[event.kind]:
        trigger = rule.trigger
        if not may_enter(state, trigger, event.at):
            continue
        waits = state.waiting and any(timer.trigger == trigger.name for timer in state.timers)
        if waits and trigger.re_entry > 0 and not (trigger.restart or trigger.kind == "birthday"):
            continue
        if not rule.where(Happened(state, event)):
            continue
        begun = _birthday(state, event, trigger, shop) if trigger.kind == "birthday" else _begun(state, event, rule, shop)
        if begun is None:
            continue
        if waits and (trigger.restart or trigger.kind == "birthday"):
            if any(timer.trigger == trigger.name and timer.since > event.at for timer in state.timers):
                continue  # this event comes late: the wait began with a newer one
            state.timers[:] = [timer for timer in state.timers if timer.trigger != trigger.name]
        if len(state.timers) < MOST_WAITS:
            state.timers.append(begun)


def ends(at: float, since: float) -> bool:
    """Whether an event at ``at`` may end a wait since then: an order belongs to its checkout also where the shop's clock is behind."""
    return at >= since - MAX_AHEAD


def _begun(state: CustomerState, event: Event, rule: Rule, shop: ShopSettings) -> Timer | None:
    """A wait that this event begins; None where it doesn't name what the mail is about."""
    trigger = rule.trigger
    facts = of_event(state, event, trigger, shop)
    if not rule.needs.issubset(slots_of(facts)):
        return None
    again = trigger.re_entry > 0 and trigger.name in state.entered
    return _timer(event.at, trigger, _occurrence(event, again), facts, event.offset)


def _birthday(state: CustomerState, event: Event, trigger: Trigger, shop: ShopSettings) -> Timer | None:
    """A wait until the customer's next birthday; None where the event names none. The year of birth is not kept."""
    found = _MONTH_DAY.fullmatch(str((event.traits or {}).get("birthday", "")))
    if found is None:
        return None
    return birthday(event.at, int(found[1]), int(found[2]), state, trigger, shop, event.offset)


def birthday(after: float, month: int, day: int, state: CustomerState, trigger: Trigger, shop: ShopSettings, offset: int) -> Timer | None:
    """A wait that ends at nine in the morning of the next such day, in the customer's zone; None where there is no such day."""
    place = zone(state.standing.timezone, shop.timezone)
    year = datetime.fromtimestamp(after, place).year
    for each in range(year, year + 9):  # leap days come every four years, or eight
        try:
            at = datetime(each, month, day, BIRTHDAY_HOUR, tzinfo=place).timestamp()
        except ValueError:
            continue
        if at > after:
            return Timer(at, trigger.name, str(each), after, pack(complete(state, after, trigger, ())), offset)
    return None


def _timer(at: float, trigger: Trigger, occurrence: str, facts: Facts, offset: int) -> Timer:
    return Timer(at + trigger.wait, trigger.name, occurrence, at, pack(facts), offset)


def _occurrence(event: Event, again: bool) -> str:
    """What tells this firing from the customer's others: at most ``LONGEST_OCCURRENCE`` characters.

    ``again``: the customer enters once more; a shop may give someone the same cart for years.
    """
    said = event.properties
    cart = said.checkout_id or said.cart_id
    if cart and again:
        cart = f"{cart}:{round(event.at)}"
    found = said.order_id or said.ticket_id or cart or event.message_id or str(round(event.at))
    if len(found) <= LONGEST_OCCURRENCE:
        return found
    return hashlib.blake2b(found.encode("utf-8", "replace"), digest_size=16).hexdigest()


class Happened(Known):
    """What is known of a customer, and what the event says."""

    __slots__ = ("event",)

    def __init__(self, state: CustomerState, event: Event) -> None:
        super().__init__(state, event.at, event.at, "")
        self.event = event

    def __getitem__(self, name: str) -> Any:
        said = _SAID.get(name)
        return said(self.event) if said is not None else super().__getitem__(name)


_SAID: dict[str, Callable[[Event], float | str]] = {
    "event": lambda event: event.kind,
    "total": lambda event: event.properties.total or event.properties.revenue or event.properties.value or 0.0,
    "discount": lambda event: event.properties.discount or 0.0,
    "coupon": lambda event: event.properties.coupon,
    "currency": lambda event: event.properties.currency,
    "quantity": lambda event: event.properties.quantity or 0.0,
    "price": lambda event: event.properties.price or 0.0,
    "old_price": lambda event: event.properties.old_price or 0.0,
    "rating": lambda event: event.properties.rating or 0.0,
    "category": lambda event: event.properties.category,
    "name": lambda event: event.properties.name,
}


@dataclass(frozen=True, slots=True)
class Found:
    """A trigger that a look at the customer starts; ``category`` for what is watched until the mail goes."""

    rule: Rule
    occurrence: str
    products: tuple[Product, ...]
    category: str = ""


def looked(state: CustomerState, rules: Rules, items: ItemsSnapshot | None, at: float, shop: ShopSettings) -> Found | None:
    """What a look at ``at`` finds worth writing about: at most one thing, the most urgent first."""
    for rule in rules.looks:
        if not may_enter(state, rule.trigger, at):
            continue
        found = next(_candidates(state, rule, items, at, shop), None)
        if found is not None and rule.holds(named(state, at, at, found.category)):
            return found
    return None


def _candidates(state: CustomerState, rule: Rule, items: ItemsSnapshot | None, at: float, shop: ShopSettings) -> Iterator[Found]:
    trigger, day = rule.trigger, str(int(at // DAY))
    silence = (at - state.visits.last) / DAY
    if trigger.kind == "replenishment":
        yield from _due_goods(state, rule, items, at, shop, day)
    elif trigger.kind == "win_back":
        # Before the visit model is published, silence alone decides, as the usual rule has it.
        lapsed = 1 - state.chances[2] >= trigger.threshold if state.chances else silence >= LONG_SILENCE
        if lapsed and silence >= 7:
            yield Found(rule, day, ())
    elif trigger.kind == "recommendation":
        if items is not None and silence <= FRESH and state.categories:
            known = {name: Category.of(row) for name, row in state.categories.items()}
            owned = {name: decayed(kind.buys / GRID, (at - kind.last) / DAY) for name, kind in known.items()}
            for name, _score in recommend(items, owned, SUGGESTIONS):
                favourite = items.favourites.get(name)
                if favourite and not ever_bought(state, name):
                    product = _product.decode(favourite)
                    yield Found(rule, day, (msgspec.structs.replace(product, goods=goods(product.category, product.name)),))
                    return
    else:
        yield Found(rule, day, ())


def _due_goods(state: CustomerState, rule: Rule, items: ItemsSnapshot | None, at: float, shop: ShopSettings, day: str) -> Iterator[Found]:
    prior = items.prior_gap if items is not None else {}
    age = exposure((at - state.visits.first) / DAY)
    ranked = []
    for name, row in state.categories.items():
        if len(row) == WIDTH:  # too few gaps to know a rhythm, or nothing that a mail could name
            continue
        category = Category.of(row)
        gaps, days = category.days - 1, (at - category.last) / DAY
        ratio = days * 24.0 * gaps / category.gap_sum if category.gap_sum else math.inf
        if EARLIEST <= ratio <= LATEST and in_window(variation(category.gap_sum, category.gap_squares, gaps), ratio, gaps):
            chance = hazard(decayed(category.buys / GRID, days), age, prior.get(name, 60.0))
            if chance >= rule.trigger.threshold:
                ranked.append((chance, name, category.last))
    if ranked:
        _chance, name, last = max(ranked)
        product = product_of(state.categories[name])
        if product is not None:
            number, label, price = product
            yield Found(rule, f"{name}:{last}", (Product(number, label, name, price, shop.currency, goods(name, label)),), name)


def timer_of(state: CustomerState, found: Found, at: float) -> Timer:
    """A found trigger as a timer that fires after its wait."""
    return _timer(at, found.rule.trigger, found.occurrence, complete(state, at, found.rule.trigger, found.products), state.offset)
