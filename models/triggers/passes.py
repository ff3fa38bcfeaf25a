"""One pass over a batch: events into states, states into intents. Plain data in, plain data out.

The pass knows no clock: ``now`` is the time that timers follow (a partition's
event time or the wall clock), ``wall`` the wall clock. Events at or below a
state's offset, and repeated message ids, change nothing: reading a batch again
is harmless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from models.customer import features
from models.customer.features import DAY, LONGEST_KIND, LONGEST_NAME
from models.customer.known import cluster_vector, named, visit_vector
from models.customer.local_time import Quiet, zone
from models.customer.recent import repeated
from models.customer.state import NEVER, PENDING, CustomerState, OpenIntent, Pending, Timer, applied_offset, dump, load, next_timer
from models.learning import clusters, rhythm
from models.learning.tone import draw_tone
from models.mail.facts import complete, currency_of, number_of
from models.mail.gate import foreseen
from models.triggers.rules import Rules, birthday, ends, looked, started, timer_of
from schemas.config import SendingSettings, ShopSettings, Trigger
from schemas.events import Event
from schemas.learning import Basket, Forgotten, ItemsSnapshot, RhythmWeights, ToneChances, Vector, Visit
from schemas.mail import Facts, Feedback, Gone, Intent, Product, Source, Standing, encode, intent_id, iso
from schemas.release import Snapshot
from schemas.topics import CLUSTERS, EVENTS, ITEMS, RHYTHM, TONES

__all__ = ["Pass", "Result", "applied_offset", "describe", "next_timer"]

LOOK_EVERY = 3.0  # days between looks at a customer who was here lately
LATELY, LOOK_LATER, LAST_LOOK = 60.0, 15.0, 400.0  # days of silence, days between looks after them, days after which nobody looks
HORIZON = 30 * DAY  # seconds until a decision of the visit model has matured
ATTRIBUTION = 7 * DAY  # seconds after a mail in which an order counts as following it, where the settings say nothing
LONGEST_BASKET = 1 << 17  # characters of goods that the learner is told of an order: in no shop's basket, but in an event of a full MiB
MOST_OPEN = 16  # intents watched for one customer; the oldest goes first
STANDING = frozenset({"identify", "Subscribed", "Unsubscribed", "Email Bounced", "Email Marked as Spam"})
OBJECTIONS = frozenset({"unsubscribed", "complained"})
FOLLOWS = {
    "Email Opened": "opened",
    "Email Link Clicked": "clicked",
    "Unsubscribed": "unsubscribed",
    "Email Marked as Spam": "complained",
    "Email Bounced": "bounced",
}


@dataclass
class Result:
    """What a pass changed and what it has to say; ``timers`` holds ``inf`` where nothing waits any more."""

    states: dict[str, bytes] = field(default_factory=dict)
    timers: dict[str, float] = field(default_factory=dict)
    intents: list[Intent] = field(default_factory=list)
    gate: list[Standing | Gone] = field(default_factory=list)
    learning: list[bytes] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    identifies: list[tuple[str, dict[str, Any], float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """One more of these."""
        self.counts[name] = self.counts.get(name, 0) + 1


class Pass:
    """Features, clusters and triggers over customers' states. SettingsError where a trigger can't work. ``topic``: the events'."""

    def __init__(
        self,
        triggers: Sequence[Trigger],
        sending: SendingSettings,
        shop: ShopSettings,
        attribution: float = ATTRIBUTION,
        topic: str = EVENTS,
    ) -> None:
        self.rules, self.topic = Rules(triggers), topic
        self.sending, self.shop, self.attribution = sending, shop, attribution
        self.quiet = Quiet(sending.quiet_start, sending.quiet_end, shop.timezone)
        self.clusters: Snapshot | None = None
        self.rhythm: RhythmWeights | None = None
        self.items: ItemsSnapshot | None = None
        self.tones: dict[str, dict[str, float]] = {}

    def update(self, topic: str, value: bytes) -> None:
        """Take in a published snapshot, unless a newer one is here; raises ``msgspec.DecodeError`` on what is none."""
        if topic == CLUSTERS:
            snapshot = msgspec.json.decode(value, type=Snapshot)
            self.clusters = snapshot if self.clusters is None or snapshot.epoch >= self.clusters.epoch else self.clusters
        elif topic == RHYTHM:
            weights = msgspec.json.decode(value, type=RhythmWeights)
            self.rhythm = weights if self.rhythm is None or weights.epoch >= self.rhythm.epoch else self.rhythm
        elif topic == ITEMS:
            items = msgspec.json.decode(value, type=ItemsSnapshot)
            self.items = items if self.items is None or items.epoch >= self.items.epoch else self.items
        elif topic == TONES:
            tones = msgspec.json.decode(value, type=ToneChances)
            self.tones[tones.cluster] = tones.chances

    def run(self, states: dict[str, bytes], events: Sequence[Event], now: float, wall: float, partition: int) -> Result:
        """Apply events, in offset order; ``states`` has each customer's record as it is now, where there is one."""
        result, touched = Result(), dict[str, CustomerState]()
        replayed = again = 0
        for event in events:
            state = touched.get(event.customer)
            if state is None:
                held = states.get(event.customer)
                state = touched[event.customer] = load(held) if held is not None else CustomerState()
            if event.offset <= state.offset:
                replayed += 1
                continue
            state.offset = event.offset
            if event.at > state.newest:
                state.newest = event.at
            if event.message_id and repeated(state, event.message_id, event.at):
                again += 1
                continue
            self._apply(state, event, result)
        counts = {"accepted": len(events) - replayed - again, "replayed": replayed, "repeated": again}
        result.counts = {name: count for name, count in counts.items() if count}
        return self._closed(touched, result)

    def fire(self, states: dict[str, bytes], now: float, wall: float, partition: int) -> Result:
        """Let go what is due at ``now`` for these customers."""
        result, touched = Result(), dict[str, CustomerState]()
        for customer, held in states.items():
            state = touched[customer] = load(held)
            self._due(customer, state, now, wall, partition, result)
        return self._closed(touched, result)

    def _closed(self, touched: dict[str, CustomerState], result: Result) -> Result:
        for customer, state in touched.items():
            result.states[customer] = dump(state)
            result.timers[customer] = state.due
        return result

    def _apply(self, state: CustomerState, event: Event, result: Result) -> None:
        kind = event.kind
        state.counts[kind] = state.counts.get(kind, 0) + 1
        basket = _basket(state, event, self.shop) if kind == "Order Completed" else None
        features.apply(state, event, self.shop.timezone)
        if kind in STANDING:
            if event.traits:
                result.identifies.append((event.customer, event.traits, event.at))
            had = state.standing.address
            if features.standing(state, event):
                result.gate.append(_standing(event.customer, state))
                if _objects(state):
                    result.learning.append(encode(Forgotten(event.customer, iso(event.at))))
                elif had and not state.standing.address:
                    result.learning.append(encode(Forgotten(event.customer, iso(event.at))))
                    result.feedback.append(Feedback("", event.customer, "erased", iso(event.at)))
        if basket is not None and not _objects(state):
            result.learning.append(encode(basket))
            self._place(event.customer, state, event.at, result)
        self._follow(state, event, result)
        started(state, event, self.rules, self.shop)
        if state.watched:
            self._watch(event.customer, state, event.at, kind, result)
        if kind not in features.NOT_A_VISIT:
            self._next_look(state, event.at)

    def _place(self, customer: str, state: CustomerState, at: float, result: Result) -> None:
        """Tell the learner this customer's vector, and take the cluster that the newest snapshot gives it."""
        vector = cluster_vector(state)
        result.learning.append(encode(Vector(customer, tuple([round(value, 6) for value in vector]), iso(at))))
        if self.clusters is not None:
            state.cluster = clusters.assign(self.clusters, vector, state.cluster or None)

    def _next_look(self, state: CustomerState, at: float) -> None:
        silence = (at - state.visits.last) / DAY
        if silence > LAST_LOOK:
            state.look = NEVER
            return
        state.look = self._awake(state, at + (LOOK_EVERY if silence < LATELY else LOOK_LATER) * DAY)

    def _awake(self, state: CustomerState, at: float) -> float:
        """``at``, or the end of the customer's quiet hours that hold it."""
        return self.quiet.awake(at, state.standing.timezone)

    def _due(self, customer: str, state: CustomerState, now: float, wall: float, partition: int, result: Result) -> None:
        # A jump of the clock may make several things due: each in its own time, oldest first.
        while (at := state.next_timer()) <= now:
            if state.look <= at:
                self._look(customer, state, state.look, result)
                continue
            timer = min(state.timers, key=lambda one: one.at)
            state.timers.remove(timer)
            awake = self._awake(state, timer.at)
            if awake > timer.at:
                timer.at = awake
                state.timers.append(timer)
                continue
            self._fire(customer, state, timer, wall, partition, result)
        self._watch(customer, state, now, "", result)

    def _look(self, customer: str, state: CustomerState, at: float, result: Result) -> None:
        self._mature(customer, state, at, result)
        values = visit_vector(state, at, self.shop.timezone)
        if self.rhythm is not None and len(self.rhythm.weights[0]) == len(values):  # weights of another version's features say nothing
            state.chances = tuple([round(chance, 4) for chance in rhythm.predict(self.rhythm, values)])
        if len(state.pending) < PENDING:
            state.pending.append(Pending.of(at, values))
        found = looked(state, self.rules, self.items, at, self.shop)
        if found is not None:
            state.timers.append(timer_of(state, found, at))
        self._next_look(state, at)

    def _mature(self, customer: str, state: CustomerState, at: float, result: Result) -> None:
        """Decisions whose 30 days have passed become rows of the visit model."""
        kept = []
        for pending in state.pending:
            if at - pending.at < HORIZON:
                kept.append(pending)
                continue
            after = pending.returned - pending.at if pending.returned else math.inf
            labels = tuple([after <= days * DAY for days in rhythm.HORIZONS])
            if not _objects(state):
                result.learning.append(encode(Visit(customer, tuple([round(value, 4) for value in pending.values]), labels, iso(at))))
        state.pending[:] = kept

    def _fire(self, customer: str, state: CustomerState, timer: Timer, wall: float, partition: int, result: Result) -> None:
        rule = self.rules.by_name.get(timer.trigger)
        name = intent_id(customer, timer.trigger, timer.occurrence)
        if rule is None:
            return  # taken out of the configuration while it waited
        trigger, facts = rule.trigger, timer.facts
        if trigger.kind == "birthday":
            facts = self._birthday(state, timer, trigger)
        category = facts.products[0].category if rule.of_category and facts.products else ""
        if not rule.holds(named(state, timer.at, timer.since, category)):
            result.count("condition_gone_before_firing")
            return
        if any(one.intent_id == name for one in state.opens):
            result.count("fired_before")
            return
        state.entered[trigger.name] = int(timer.since)
        expires = timer.at + trigger.use_by
        tone, propensity = (trigger.tone, 1.0) if trigger.tone else draw_tone(self.tones.get(state.cluster, {}), name)
        result.intents.append(
            Intent(
                intent_id=name,
                customer=customer,
                trigger=trigger.name,
                occurrence=timer.occurrence,
                due=iso(timer.at),
                expires=iso(expires),
                cluster=state.cluster,
                facts=facts,
                source=Source(self.topic, partition, timer.offset if timer.offset >= 0 else state.offset),
                fired=iso(wall),
                priority=trigger.priority,
                tone=tone,
                propensity=propensity,
                locale=state.standing.locale or self.shop.locale,
                foreseen=foreseen(_standing(customer, state), customer, trigger.marketing, self.sending.holdout),
            )
        )
        state.opens.append(OpenIntent(name, trigger.name, timer.since, expires, timer.at + self.attribution, timer.at, category))
        del state.opens[:-MOST_OPEN]

    def _birthday(self, state: CustomerState, timer: Timer, trigger: Trigger) -> Facts:
        """What is known today, not a year ago; the next birthday waits from now on."""
        today = datetime.fromtimestamp(timer.at, zone(state.standing.timezone, self.shop.timezone))
        following = birthday(timer.at + DAY, today.month, today.day, state, trigger, self.shop, state.offset)
        if following is not None:
            state.timers.append(following)
        return complete(state, timer.at, trigger, ())

    def _watch(self, customer: str, state: CustomerState, at: float, kind: str, result: Result) -> None:
        """Conditions of the intents that fired, looked at again; those past their attribution are forgotten."""
        if not state.opens:
            return
        kept = []
        for one in state.opens:
            if at > one.expires and at > one.until:
                continue
            rule = self.rules.by_name.get(one.trigger)
            if rule is not None and not one.gone and at <= one.expires:
                ended = kind in rule.trigger.cancel_on and ends(at, one.since)
                if ended or not rule.holds(named(state, at, one.since, one.category)):
                    one.gone = True
                    result.gate.append(Gone(customer, one.intent_id, one.trigger))
            kept.append(one)
        if len(kept) < len(state.opens):
            state.opens[:] = kept

    def _follow(self, state: CustomerState, event: Event, result: Result) -> None:
        """What followed a mail, for the trainer: engagement that names its intent, and orders soon after one."""
        kind = FOLLOWS.get(event.kind)
        if kind is not None:
            said = event.properties
            name = said.intent_id or said.message_id.strip("<>").partition("@")[0]
            if len(name) <= 64 and (name or kind in OBJECTIONS):
                result.feedback.append(Feedback(name, event.customer, kind, iso(event.at), 0.0, said.simulated))  # type: ignore[arg-type]
        elif event.kind == "Order Completed":
            value = event.properties.total or event.properties.revenue or 0.0
            for one in state.opens:
                if one.fired <= event.at <= one.until:  # from the firing, not from what began the wait
                    result.feedback.append(Feedback(one.intent_id, event.customer, "ordered", iso(event.at), value))


def _basket(state: CustomerState, event: Event, shop: ShopSettings) -> Basket | None:
    """What the learner of goods is told of an order; None where it names no category."""
    products: dict[str, list[str]] = {}
    room = LONGEST_BASKET
    currency = currency_of(event, shop)
    for item in event.properties.products:
        name = item.category[:LONGEST_KIND]
        if name:
            told = products.setdefault(name, [])
            if 0 < len(item.name) <= LONGEST_NAME:
                told.append(_told(number_of(item), item.name, name, item.price, currency))
                room -= len(told[-1])
            room -= len(name)
            if room < 0:
                break
    if not products:
        return None
    owned = state.categories
    new = tuple([name for name in products if name not in owned and not features.ever_bought(state, name)])
    first = state.visits.first or event.at
    return Basket(event.customer, new, tuple(owned), products, iso(event.at), first)  # type: ignore[arg-type]


@lru_cache(maxsize=8192)
def _told(product_id: str, name: str, category: str, price: float | None, currency: str) -> str:
    """The product as JSON: a shop sells the same things all day."""
    return encode(Product(product_id, name, category, price, currency)).decode()


def _objects(state: CustomerState) -> bool:
    """Whether the customer said no to our mail: that one is learned from no more."""
    return state.standing.unsubscribed or state.standing.complained


def _standing(customer: str, state: CustomerState) -> Standing:
    own = state.standing
    return Standing(
        customer, own.consent and not own.unsubscribed, own.address, own.unsubscribed, own.bounced, own.complained, own.timezone
    )


def describe(data: bytes, now: float) -> dict[str, Any]:
    """What is known of a customer, for people: counts, features, cluster, predictions, open timers."""
    state = load(data)
    newest = max(state.visits.last, state.orders.last)
    known = named(state, max(newest, min(now, newest + 365 * DAY)))
    return {
        "counts": dict(sorted(state.counts.items())),
        "features": {
            name: round(float(value), 4) for name, value in known.items() if not name.endswith("_since") and not name.startswith("p_")
        },
        "standing": {
            name: getattr(state.standing, name) for name in ("consent", "address", "unsubscribed", "bounced", "complained", "timezone")
        },
        "cluster": state.cluster,
        "predictions": dict(zip(("p_visit_7d", "p_visit_14d", "p_visit_30d"), state.chances, strict=False)),
        "timers": [{"trigger": timer.trigger, "at": iso(timer.at), "occurrence": timer.occurrence} for timer in state.timers],
        "open_intents": [{"intent_id": one.intent_id, "trigger": one.trigger, "condition_gone": one.gone} for one in state.opens],
        "next_look": iso(state.look) if state.look < NEVER else None,
        "state_bytes": len(data),
    }
