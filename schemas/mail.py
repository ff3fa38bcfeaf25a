"""What travels between a trigger that fired and an email that a server accepted.

Times on topics are RFC 3339 strings in UTC; in code they are seconds since the
epoch (float). Money is in the currency's main unit as it stood in the event.
No name, address, birthday or free text is in any of these.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

Origin = Literal["generated", "pool", "template"]
Mode = Literal["guided", "free"]
Status = Literal["sent", "suppressed", "failed", "unknown", "held"]
Reason = Literal[
    "no_consent",
    "unsubscribed",
    "bounced",
    "complained",
    "condition_gone",
    "expired",
    "frequency_cap",
    "duplicate",
    "holdout",
    "no_address",
]


def intent_id(customer: str, trigger: str, occurrence: str) -> str:
    """The same firing has the same id, however often it is replayed: 32 hex digits."""
    return hashlib.blake2b("\x1f".join((customer, trigger, occurrence)).encode(), digest_size=16).hexdigest()


def iso(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(text: str) -> float:
    """RFC 3339 to seconds since the epoch; ValueError where it is none."""
    return datetime.fromisoformat(text).timestamp()


class Source(msgspec.Struct, frozen=True):
    """The event that made a trigger fire: the one that began its wait; the customer's last one where a look at them did."""

    topic: str
    partition: int
    offset: int


class Product(msgspec.Struct, frozen=True, omit_defaults=True):
    """One product as an event named it. ``goods`` is its phrase book group ("coffee", "pets", ...)."""

    product_id: str
    name: str
    category: str = ""
    price: float | None = None
    currency: str = ""
    goods: str = ""


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that a mail may state. ``values`` fill further slots by name ("coupon_code": "SAVE5", "order_date": "3 March").

    ``situation`` holds tags that clauses may ask for ("first_order", "coupon_user", "long_gone").
    """

    products: tuple[Product, ...] = ()
    values: dict[str, str] = {}
    situation: tuple[str, ...] = ()


class Intent(msgspec.Struct, frozen=True):
    """A trigger fired for a customer: topic ``email.intents``, key = customer."""

    intent_id: str
    customer: str
    trigger: str
    occurrence: str
    due: str
    expires: str
    cluster: str
    facts: Facts
    source: Source
    fired: str  # wall clock; with the event clock, lateness is counted from here
    priority: int = 5  # 0 = care lane, 9 = can wait
    tone: str = ""
    locale: str = "en"
    propensity: float = 1.0  # of the tone, where a bandit chose it
    foreseen: Reason | None = None  # why the gate will suppress it unless the standing changes: the model writes nothing for it


class Choice(msgspec.Struct, frozen=True):
    """One clause of the phrase book that the model chose, with the probability it chose it with."""

    move: str
    clause: str
    propensity: float


class Draft(msgspec.Struct, frozen=True):
    """Words around slots for one intent: topic ``email.drafts``, key = customer. ``text``: Subject, Preheader, empty line, body."""

    intent: Intent
    text: str
    origin: Origin
    mode: Mode
    release: str  # that served the cluster when the mail was begun (a template's too), "base" where no adapter did
    seed: int
    choices: tuple[Choice, ...] = ()
    guard: dict[str, str] = {}  # verdict by rule: "ok", or what it refused
    written: str = ""
    prompt: str = ""  # the very text that the model saw


class Delivery(msgspec.Struct, frozen=True):
    """The one final outcome of an intent: topic ``email.deliveries``, key = customer."""

    intent_id: str
    customer: str
    trigger: str
    cluster: str
    release: str
    origin: Origin
    mode: Mode
    status: Status
    message_id: str
    due: str
    written: str
    at: str
    reason: str | None = None
    code: int | None = None  # the server's reply code where it said no
    guard: dict[str, str] = {}


class Claim(msgspec.Struct, frozen=True):
    """Acknowledged by Kafka before DATA: topic ``email.claims``, key = customer. Without a delivery it ends ``unknown``.

    ``withdrawn``: the server clearly did not take the mail, so the intent may be claimed again.
    """

    intent_id: str
    customer: str
    trigger: str
    at: str
    draft: Draft
    withdrawn: bool = False


class Standing(msgspec.Struct, frozen=True, tag="standing"):
    """What the gate must know of a customer, whole at each change: topic ``email.gate``, key = customer."""

    customer: str
    consent: bool
    address: bool
    unsubscribed: bool = False
    bounced: bool = False
    complained: bool = False
    timezone: str = ""


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """An open intent's condition no longer holds: topic ``email.gate``, key = intent id, in the customer's partition."""

    customer: str
    intent_id: str
    why: str


class Watermark(msgspec.Struct, frozen=True, tag="watermark"):
    """Intake has applied ``customer.events`` of this partition below ``offset``: topic ``email.gate``, key = "watermark"."""

    partition: int
    offset: int
    event_time: float


GateRecord = Standing | Gone | Watermark


class Feedback(msgspec.Struct, frozen=True, omit_defaults=True):
    """What followed a mail: topic ``email.feedback``, key = customer. An objection that names no mail has an empty ``intent_id``.

    ``erased``: the customer has no address any more.
    """

    intent_id: str
    customer: str
    kind: Literal["opened", "clicked", "ordered", "unsubscribed", "complained", "bounced", "erased"]
    at: str
    value: float = 0.0  # of the order, in its currency
    simulated: bool = False


class Example(msgspec.Struct, frozen=True, omit_defaults=True):
    """A context and the text written for it: topic ``training.examples``, key = cluster id."""

    intent_id: str
    cluster: str
    trigger: str
    prompt: str  # the very prompt that the model saw
    text: str  # with slots, never filled
    choices: tuple[Choice, ...]
    release: str
    origin: Origin
    tone: str
    sent: str
    customer: str = ""  # so that objectors can be taken out again


def encode(value: msgspec.Struct) -> bytes:
    """One JSON document in UTF-8."""
    return msgspec.json.encode(value)


def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """A strict decoder for one of the types above; raises ``msgspec.ValidationError`` naming the field."""
    return msgspec.json.Decoder(kind)
