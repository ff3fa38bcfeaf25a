"""One pass over a batch: events into states, states into intents. Plain data in, plain data out.

The pass knows no clock: ``now`` is the time that timers follow (a partition's
event time or the wall clock), ``wall`` the wall clock. Events at or below a
state's offset, and repeated message ids, change nothing: reading a batch again
is harmless.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from models import clusters, features, rhythm
from models.features import DAY, named
from models.gate import foreseen, quiet_until
from models.state import NEVER, PENDING, RECENT, RECENT_MOST, RECENT_SECONDS, Open, Pending, State, Timer, applied_offset, dump, load
from models.state import next_timer as due
from models.triggers import Rule, compile_rules, looked, started, timer_of
from schemas.config import SendingSettings, ShopSettings, Trigger
from schemas.events import Event
from schemas.learning import Basket, ItemsSnapshot, RhythmWeights, Vector, Visit
from schemas.mail import Feedback, Gone, Intent, Product, Source, Standing, encode, intent_id, iso
from schemas.release import Snapshot
from schemas.topics import CLUSTERS, EVENTS, ITEMS, RHYTHM

__all__ = ["Pass", "Result", "applied_offset", "describe", "next_timer"]

TONES = ("warm", "crisp", "playful")
LOOK_EVERY = 3.0  # days between looks at a customer who was here lately
LATELY, LOOK_LATER, LAST_LOOK = 60.0, 15.0, 400.0  # days of silence, days between looks after them, days after which nobody looks
HORIZON = 30 * DAY  # seconds until a decision of the visit model has matured
ATTRIBUTION = 7 * DAY  # seconds after a mail in which an order counts as following it
MOST_OPEN = 16  # intents watched for one customer; the oldest goes first
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
    identifies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """One more of these."""
        self.counts[name] = self.counts.get(name, 0) + 1


class Pass:
    """Features, clusters and triggers over customers' states. SettingsError where a trigger can't work."""

    def __init__(self, triggers: Sequence[Trigger], sending: SendingSettings, shop: ShopSettings) -> None:
        self.rules: list[Rule] = compile_rules(list(triggers))
        self.by_name = {rule.trigger.name: rule for rule in self.rules}
        self.sending, self.shop = sending, shop
        self.clusters: Snapshot | None = None
        self.rhythm: RhythmWeights | None = None
        self.items: ItemsSnapshot | None = None

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

    def run(self, states: dict[str, bytes], events: Sequence[Event], now: float, wall: float, partition: int) -> Result:
        """Apply events, in offset order; ``states`` has each customer's record as it is now, where there is one."""
        result, touched = Result(), dict[str, State]()
        for event in events:
            state = touched.get(event.customer)
            if state is None:
                held = states.get(event.customer)
                state = touched[event.customer] = load(held) if held is not None else State()
            if event.offset <= state.offset:
                result.count("replayed")
                continue
            state.offset = event.offset
            if _repeated(state, event):
                result.count("repeated")
                continue
            self._apply(state, event, wall, result)
        return self._closed(touched, result)

    def fire(self, states: dict[str, bytes], now: float, wall: float, partition: int) -> Result:
        """Let go what is due at ``now`` for these customers."""
        result, touched = Result(), dict[str, State]()
        for customer, held in states.items():
            state = touched[customer] = load(held)
            self._due(customer, state, now, wall, partition, result)
        return self._closed(touched, result)

    def _closed(self, touched: dict[str, State], result: Result) -> Result:
        for customer, state in touched.items():
            result.states[customer] = dump(state)
            result.timers[customer] = due(state)
        return result

    def _apply(self, state: State, event: Event, wall: float, result: Result) -> None:
        state.counts[event.kind] = state.counts.get(event.kind, 0) + 1
        result.count("accepted")
        basket = _basket(state, event, self.shop) if event.kind == "Order Completed" else None
        features.apply(state, event, self.shop.timezone)
        if event.kind == "identify" and event.traits:
            result.identifies.append((event.customer, event.traits))
        if features.standing(state, event):
            result.gate.append(_standing(event.customer, state))
        if basket is not None:
            result.learning.append(encode(basket))
            self._place(event.customer, state, event.at, result)
        self._follow(state, event, result)
        started(state, event, self.rules, self.shop)
        self._watch(event.customer, state, event.at, result)
        if event.kind not in features.NOT_A_VISIT:
            self._next_look(state, event.at)

    def _place(self, customer: str, state: State, at: float, result: Result) -> None:
        """Tell the learner this customer's vector, and take the cluster that the newest snapshot gives it."""
        vector = features.cluster_vector(state, at)
        result.learning.append(encode(Vector(customer, tuple(round(value, 6) for value in vector), iso(at))))
        if self.clusters is not None:
            state.cluster = clusters.assign(self.clusters, vector, state.cluster or None)

    def _next_look(self, state: State, at: float) -> None:
        silence = (at - state.visits.last) / DAY
        if silence > LAST_LOOK:
            state.look = NEVER
            return
        state.look = self._awake(state, at + (LOOK_EVERY if silence < LATELY else LOOK_LATER) * DAY)

    def _awake(self, state: State, at: float) -> float:
        """``at``, or the end of the customer's quiet hours that hold it."""
        sending = self.sending
        return quiet_until(at, state.standing.timezone, self.shop.timezone, sending.quiet_start, sending.quiet_end) or at

    def _due(self, customer: str, state: State, now: float, wall: float, partition: int, result: Result) -> None:
        # A jump of the clock may make several things due: each in its own time, oldest first.
        while (at := due(state)) <= now:
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
        self._watch(customer, state, now, result)

    def _look(self, customer: str, state: State, at: float, result: Result) -> None:
        self._mature(customer, state, at, result)
        values = features.visit_vector(state, at, self.shop.timezone)
        if self.rhythm is not None and len(self.rhythm.weights[0]) == len(values):  # weights of another version's features say nothing
            state.chances = [round(chance, 4) for chance in rhythm.predict(self.rhythm, values)]
        if len(state.pending) < PENDING:
            state.pending.append(Pending(at, [round(value, 4) for value in values]))
        found = looked(state, self.rules, self.items, at, self.shop)
        if found is not None:
            state.timers.append(timer_of(state, found, at))
        self._next_look(state, at)

    def _mature(self, customer: str, state: State, at: float, result: Result) -> None:
        """Decisions whose 30 days have passed become rows of the visit model."""
        kept = []
        for pending in state.pending:
            if at - pending.at < HORIZON:
                kept.append(pending)
                continue
            after = pending.returned - pending.at if pending.returned else math.inf
            labels = tuple(after <= days * DAY for days in rhythm.HORIZONS)
            result.learning.append(encode(Visit(customer, tuple(pending.values), labels, iso(at))))
        state.pending = kept

    def _fire(self, customer: str, state: State, timer: Timer, wall: float, partition: int, result: Result) -> None:
        rule = self.by_name.get(timer.trigger)
        if rule is None:
            return  # taken out of the configuration while it waited
        trigger = rule.trigger
        category = timer.facts.products[0].category if trigger.kind == "replenishment" and timer.facts.products else ""
        if not rule.holds(named(state, timer.at, timer.since, category)):
            result.count("condition_gone_before_firing")
            return
        state.entered[trigger.name] = timer.since
        expires = timer.at + trigger.use_by
        name = intent_id(customer, trigger.name, timer.occurrence)
        result.intents.append(
            Intent(
                intent_id=name,
                customer=customer,
                trigger=trigger.name,
                occurrence=timer.occurrence,
                due=iso(timer.at),
                expires=iso(expires),
                cluster=state.cluster,
                facts=timer.facts,
                source=Source(EVENTS, partition, state.offset),
                fired=iso(wall),
                priority=trigger.priority,
                tone=trigger.tone or _tone(customer, trigger.name),
                locale=state.standing.locale or self.shop.locale,
                foreseen=foreseen(_standing(customer, state), customer, trigger.marketing, self.sending.holdout),
            )
        )
        state.opens.append(Open(name, trigger.name, timer.since, expires, timer.at + ATTRIBUTION, category))
        del state.opens[:-MOST_OPEN]

    def _watch(self, customer: str, state: State, at: float, result: Result) -> None:
        """Conditions of the intents that fired, looked at again; those past their attribution are forgotten."""
        if not state.opens:
            return
        kept = []
        for one in state.opens:
            if at > max(one.expires, one.until):
                continue
            rule = self.by_name.get(one.trigger)
            if rule is not None and not one.gone and at <= one.expires and not rule.holds(named(state, at, one.since, one.category)):
                one.gone = True
                result.gate.append(Gone(customer, one.intent_id, one.trigger))
            kept.append(one)
        state.opens = kept

    def _follow(self, state: State, event: Event, result: Result) -> None:
        """What followed a mail, for the trainer: engagement that names its intent, and orders soon after one."""
        kind = FOLLOWS.get(event.kind)
        if kind is not None:
            said = event.properties
            name = said.intent_id or said.message_id.strip("<>").partition("@")[0]
            if name and len(name) <= 64:
                simulated = bool(event.name) and event.message_id.startswith("sim-")
                result.feedback.append(Feedback(name, event.customer, kind, iso(event.at), 0.0, simulated))  # type: ignore[arg-type]
        elif event.kind == "Order Completed":
            value = event.properties.total or event.properties.revenue or 0.0
            for one in state.opens:
                if one.until - ATTRIBUTION <= event.at <= one.until:  # from the firing, not from what began the wait
                    result.feedback.append(Feedback(one.intent_id, event.customer, "ordered", iso(event.at), value))


def _repeated(state: State, event: Event) -> bool:
    """Whether this message id was seen lately; remembers it."""
    if not event.message_id:
        return False
    digest = int.from_bytes(hashlib.blake2b(event.message_id.encode("utf-8", "replace"), digest_size=7).digest(), "big")
    if any(known == digest for known, _ in state.recent):
        return True
    state.recent.append((digest, event.at))
    if len(state.recent) > RECENT:
        newest = max(at for _, at in state.recent)
        extra = len(state.recent) - RECENT
        kept = [pair for n, pair in enumerate(state.recent) if n >= extra or pair[1] >= newest - RECENT_SECONDS]
        state.recent = kept[-RECENT_MOST:]
    return False


def _basket(state: State, event: Event, shop: ShopSettings) -> Basket | None:
    """What the learner of goods is told of an order; None where it names no category."""
    products: dict[str, list[str]] = {}
    for item in event.properties.products:
        if item.category:
            product = Product(item.product_id or item.sku, item.name, item.category, item.price, event.properties.currency or shop.currency)
            products.setdefault(item.category, []).extend([encode(product).decode()] if item.name else [])
    if not products:
        return None
    new = tuple(name for name in products if name not in state.categories)
    owned = tuple(name for name in state.categories)
    return Basket(
        event.customer, new, owned, {name: tuple(each) for name, each in products.items()}, iso(event.at), state.visits.first or event.at
    )


def _standing(customer: str, state: State) -> Standing:
    own = state.standing
    return Standing(
        customer, own.consent and not own.unsubscribed, own.address, own.unsubscribed, own.bounced, own.complained, own.timezone
    )


def _tone(customer: str, trigger: str) -> str:
    """Chosen by lot, the same at each replay, until a bandit knows better."""
    return TONES[hashlib.blake2b(f"{trigger}\x1f{customer}".encode(), digest_size=2).digest()[0] % len(TONES)]


def next_timer(data: bytes) -> float:
    """When something is due next for the customer with these bytes; ``inf`` where nothing is."""
    return due(load(data))


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
