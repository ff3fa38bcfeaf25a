"""When a trigger starts, waits, fires and falls silent: plain functions over one customer's state."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from models import features
from models.conditions import Condition, compile_condition
from models.facts import complete, of_event
from models.features import DAY, named
from models.goods import goods
from models.items import recommend
from models.replenishment import decayed, exposure, hazard, in_window
from models.state import State, Timer
from schemas.config import ShopSettings, Trigger
from schemas.errors import SettingsError
from schemas.events import KINDS, Event
from schemas.learning import ItemsSnapshot
from schemas.mail import Product, decoder

LOOK = "rhythm"  # `on` of the triggers that a regular look at the customer starts
LONG_SILENCE = 30.0  # days: win-back's rule until the visit model is published
FRESH = 4.0  # days after a visit in which a recommendation still fits
EVENT_NAMES = ("total", "discount", "coupon", "currency", "quantity", "price", "rating", "category", "name")
_product = decoder(Product)


@dataclass(frozen=True, slots=True)
class Rule:
    """A trigger with its conditions compiled."""

    trigger: Trigger
    where: Condition
    holds: Condition


def compile_rules(triggers: tuple[Trigger, ...] | list[Trigger]) -> list[Rule]:
    """Rules of the enabled triggers, by priority. SettingsError names the trigger and the mend."""
    rules: list[Rule] = []
    names: set[str] = set()
    for trigger in triggers:
        if trigger.name in names:
            raise SettingsError(f"trigger {trigger.name!r} stands twice: give one another name")
        names.add(trigger.name)
        if trigger.on != LOOK and trigger.on not in KINDS:
            raise SettingsError(f"trigger {trigger.name!r}: on = {trigger.on!r} is no event; choose one of {', '.join(KINDS)} or {LOOK!r}")
        for name in trigger.cancel_on:
            if name not in KINDS:
                raise SettingsError(f"trigger {trigger.name!r}: cancel_on names {name!r}, which is no event")
        if trigger.kind == "coupon" and not trigger.code:
            raise SettingsError(f"trigger {trigger.name!r}: kind 'coupon' needs a code")
        place = f"trigger {trigger.name!r}"
        where = compile_condition(trigger.where, {*features.NAMES, *EVENT_NAMES}, f"{place}, where")
        holds = compile_condition(trigger.condition, features.NAMES, f"{place}, condition")
        if trigger.enabled:
            rules.append(Rule(trigger, where, holds))
    return sorted(rules, key=lambda rule: rule.trigger.priority)


def may_enter(state: State, trigger: Trigger, now: float) -> bool:
    """Whether the same customer may enter this trigger again."""
    before = state.entered.get(trigger.name)
    return before is None or now - before >= trigger.re_entry


def started(state: State, event: Event, rules: list[Rule], shop: ShopSettings) -> None:
    """Start the waits that this event begins and end those that it cancels, in place."""
    kept = []
    cancels = {rule.trigger.name: rule.trigger.cancel_on for rule in rules}
    for timer in state.timers:
        if event.kind not in cancels.get(timer.trigger, ()) or event.at < timer.since:
            kept.append(timer)
    state.timers = kept
    for rule in rules:
        trigger = rule.trigger
        if trigger.on != event.kind or not may_enter(state, trigger, event.at):
            continue
        if any(timer.trigger == trigger.name for timer in state.timers) and trigger.re_entry > 0:
            continue
        if rule.where(_values(state, event)):
            said = event.properties
            occurrence = said.order_id or said.ticket_id or said.checkout_id or said.cart_id or event.message_id or str(round(event.at))
            state.timers.append(Timer(event.at + trigger.wait, trigger.name, occurrence, event.at, of_event(state, event, trigger, shop)))


def _values(state: State, event: Event) -> Mapping[str, object]:
    said = event.properties
    return {
        **named(state, event.at, event.at),
        "total": said.total or said.revenue or said.value or 0.0,
        "discount": said.discount or 0.0,
        "coupon": said.coupon,
        "currency": said.currency,
        "quantity": said.quantity or 0.0,
        "price": said.price or 0.0,
        "rating": said.rating or 0.0,
        "category": said.category,
        "name": said.name,
    }


@dataclass(frozen=True, slots=True)
class Found:
    """A trigger that a look at the customer starts; ``category`` for what is watched until the mail goes."""

    rule: Rule
    occurrence: str
    products: tuple[Product, ...]
    category: str = ""


def looked(state: State, rules: list[Rule], items: ItemsSnapshot | None, at: float, shop: ShopSettings) -> Found | None:
    """What a look at ``at`` finds worth writing about: at most one thing, the most urgent first."""
    for rule in rules:
        trigger = rule.trigger
        if trigger.on != LOOK or not may_enter(state, trigger, at):
            continue
        found = next(_candidates(state, rule, items, at, shop), None)
        if found is not None and rule.holds(named(state, at, at, found.category)):
            return found
    return None


def _candidates(state: State, rule: Rule, items: ItemsSnapshot | None, at: float, shop: ShopSettings) -> Iterator[Found]:
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
            owned = {name: decayed(c.count, (at - c.last) / DAY) for name, c in state.categories.items()}
            for name, _score in recommend(items, owned, 5):
                favourite = items.favourites.get(name)
                if favourite:
                    product = _product.decode(favourite)
                    yield Found(rule, day, (msgspec.structs.replace(product, goods=goods(product.category, product.name)),))
                    return
    else:
        yield Found(rule, day, ())


def _due_goods(state: State, rule: Rule, items: ItemsSnapshot | None, at: float, shop: ShopSettings, day: str) -> Iterator[Found]:
    prior = items.prior_gap if items is not None else {}
    age = exposure((at - state.visits.first) / DAY)
    ranked = []
    for name, category in state.categories.items():
        gaps = category.days - 1
        if gaps < 1 or not category.name:
            continue
        ratio = (at - category.last) / DAY / (category.gap_sum / gaps)
        if in_window(features.gap_cv(category), ratio, gaps):
            chance = hazard(decayed(category.count, (at - category.last) / DAY), age, prior.get(name, 60.0))
            if chance >= rule.trigger.threshold:
                ranked.append((chance, name))
    for _chance, name in heapq.nlargest(1, ranked):
        found = state.categories[name]
        product = Product(found.product_id, found.name, name, found.price, shop.currency, goods(name, found.name))
        yield Found(rule, f"{name}:{round(found.last)}", (product,), name)


def timer_of(state: State, found: Found, at: float) -> Timer:
    """A found trigger as a timer that fires after its wait."""
    trigger = found.rule.trigger
    return Timer(at + trigger.wait, trigger.name, found.occurrence, at, complete(state, at, trigger, found.products))
