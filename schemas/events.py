"""What a shop publishes on ``customer.events``: one record in, an ``Event`` or the reason why it can't be read.

The usual record takes the fast way: one typed ``msgspec`` pass. A record that
is readable but careless (a number as text, an order id as a number, a product
that is no object) takes the slow way, which drops the careless field and keeps
the event. Only what makes an event no event is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from schemas.errors import UNREADABLE

Reason = Literal["not_json", "not_an_event", "no_customer", "bad_time", "future", "too_large", "unsupported_format"]

TRACKED = (
    "Product Viewed",
    "Products Searched",
    "Product Added",
    "Product Removed",
    "Cart Viewed",
    "Checkout Started",
    "Order Completed",
    "Order Refunded",
    "Coupon Applied",
    "Product Reviewed",
    "Support Ticket Opened",
    "Support Ticket Closed",
    "Product Back In Stock",
    "Price Dropped",
    "Email Opened",
    "Email Link Clicked",
    "Email Bounced",
    "Email Marked as Spam",
    "Unsubscribed",
    "Subscribed",
)
KINDS = (*TRACKED, "identify", "page", "other")

MAX_BYTES = 1 << 20  # of a value; larger ones are set aside
LONGEST_CUSTOMER = 1 << 14  # characters of a userId or anonymousId: it is the key of records, and stands in their values
LARGEST_NUMBER = 1e12  # of a property, up or down: sums and squares of many stay finite
MAX_AHEAD = 300.0  # seconds that a producer's clock may be ahead of ours

_UNDERSTOOD = frozenset(TRACKED)
_FIVE_DIGIT_YEAR = re.compile(r"\+?\d{5,6}-\d\d-\d\d")
_UTF8_BOM = b"\xef\xbb\xbf"
_DIGITS = 40  # of a number used as an id
_DEPTH = 32  # of lists and objects within a trait

Number = Annotated[float, msgspec.Meta(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]


class Item(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One product of an event; absent text is "", absent numbers are None, and so are those past ``LARGEST_NUMBER``."""

    product_id: str = ""
    sku: str = ""
    name: str = ""
    category: str = ""
    brand: str = ""
    price: Number | None = None
    quantity: Number | None = None


class Properties(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The properties that are understood, of every understood event; absent text is "", absent numbers are None.

    A number past ``LARGEST_NUMBER`` is absent, too. Money is in the currency's
    main unit. ``old_price`` belongs to ``Price Dropped``; ``intent_id`` and
    ``message_id`` to what follows an email, and ``simulated`` to what no person did.
    """

    order_id: str = ""
    checkout_id: str = ""
    cart_id: str = ""
    total: Number | None = None
    revenue: Number | None = None
    value: Number | None = None
    discount: Number | None = None
    currency: str = ""
    coupon: str = ""
    products: list[Item] = []
    product_id: str = ""
    sku: str = ""
    name: str = ""
    category: str = ""
    brand: str = ""
    price: Number | None = None
    old_price: Number | None = None
    quantity: Number | None = None
    query: str = ""
    rating: Number | None = None
    ticket_id: str = ""
    intent_id: str = ""
    message_id: str = ""
    simulated: bool = False


class Event(msgspec.Struct, frozen=True, gc=False):
    """One accepted event. ``kind`` is one of ``KINDS``; ``at`` is seconds since the epoch; ``traits`` only on ``identify``."""

    customer: str
    kind: str
    at: float
    message_id: str
    properties: Properties
    traits: dict[str, Any] | None
    partition: int
    offset: int
    name: str = ""  # as the producer spelt it


class Dead(msgspec.Struct, frozen=True):
    """Why a record can't be read. ``detail`` says it in words without a value of the record: it may stand in a header."""

    reason: Reason
    detail: str


class _Context(msgspec.Struct, gc=False):
    traits: dict[str, Any] | None = None


class _Wire(msgspec.Struct, gc=False):
    type: str | None = None
    event: str | None = None
    userId: str | None = None
    anonymousId: str | None = None
    messageId: str | None = None
    timestamp: str | None = None
    originalTimestamp: str | None = None
    receivedAt: str | None = None
    properties: Properties | None = None
    traits: dict[str, Any] | None = None
    context: _Context | None = None
    specversion: str | None = None


_decode = msgspec.json.Decoder(_Wire).decode
_NONE = Properties()


def decode(
    value: bytes | None, wall: float, partition: int = 0, offset: int = 0, headers: Iterable[tuple[str, bytes]] = ()
) -> Event | Dead:
    """One record value as an event, or the reason why not. ``wall`` is the wall clock, seconds since the epoch."""
    if value is None:
        return Dead("unsupported_format", "the record has no value")
    if len(value) > MAX_BYTES:
        return Dead("too_large", f"the value has {len(value)} bytes, {MAX_BYTES} are allowed")
    try:
        wire = _decode(value)
    except UNREADABLE:
        return _slow(value, wall, partition, offset, headers)
    # Of a field that isn't understood the decoder reads no letter. A text in ASCII, as most are, needs no second look.
    if wire.specversion is not None or not (value.isascii() or _is_utf8(value)):
        return _slow(value, wall, partition, offset, headers)
    return _event(wire, wall, partition, offset)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _event(wire: _Wire, wall: float, partition: int, offset: int) -> Event | Dead:
    sort = wire.type
    if sort is None:
        if wire.event is None:
            return Dead("not_an_event", "neither type nor event is there")
        sort = "track"
    customer = wire.userId
    if not customer or customer.isspace():
        customer = wire.anonymousId
    if sort != "track":
        sort = sort.lower()
    if sort == "track":
        if wire.event is None:
            return Dead("not_an_event", "a track without the event's name")
        kind = wire.event if wire.event in _UNDERSTOOD else "other"
    else:
        kind = sort if sort in ("identify", "page") else "other"
    if not customer or customer.isspace():
        return Dead("no_customer", "neither userId nor anonymousId is there")
    if len(customer) > LONGEST_CUSTOMER:
        return Dead("too_large", f"the customer's id has {len(customer)} characters, {LONGEST_CUSTOMER} are allowed")
    text = wire.timestamp or wire.originalTimestamp or wire.receivedAt
    at = _seconds(text) if text else None
    if at is None:
        return Dead(
            "bad_time", "the time is no RFC 3339 date and time" if text else "timestamp, originalTimestamp and receivedAt are absent"
        )
    if at < 0:
        return Dead("bad_time", "the time is before 1970")
    if at > wall + MAX_AHEAD:
        return Dead("future", f"the time is more than {MAX_AHEAD:.0f} seconds ahead")
    traits = None
    if kind == "identify":
        told = {**((wire.context and wire.context.traits) or {}), **(wire.traits or {})}
        traits = {name: value for name, value in told.items() if _keepable(name) and _keepable(value)}
    return Event(customer, kind, at, wire.messageId or "", wire.properties or _NONE, traits, partition, offset, wire.event or "")


def _seconds(text: str) -> float | None:
    """RFC 3339 (a missing offset is UTC, ``:60`` is ``:59``) to seconds; inf for years past 9999; None where it is none."""
    if len(text) < 16 or text[10] not in "Tt ":
        return math.inf if _FIVE_DIGIT_YEAR.match(text) else None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.upper().replace(":60", ":59"))
        except ValueError:
            return math.inf if _FIVE_DIGIT_YEAR.match(text) else None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


# -- the slow way ------------------------------------------------------------------------------------


def _slow(value: bytes, wall: float, partition: int, offset: int, headers: Iterable[tuple[str, bytes]]) -> Event | Dead:
    foreign = _foreign(value, headers)
    if foreign:
        return Dead("unsupported_format", foreign)
    try:
        body = json.loads(value.removeprefix(_UTF8_BOM).decode(), parse_constant=_refuse, parse_int=_integer)
    except (ValueError, RecursionError):
        return Dead("not_json", "the value is no UTF-8 JSON")
    if isinstance(body, dict) and "specversion" in body and isinstance(body.get("data"), dict):
        body = body["data"]  # a CloudEvent around the event
    if not isinstance(body, dict):
        return Dead("not_an_event", "the value is JSON, but no object")
    wire = _wire(body)
    return wire if isinstance(wire, Dead) else _event(wire, wall, partition, offset)


def _foreign(value: bytes, headers: Iterable[tuple[str, bytes]]) -> str:
    for name, content in headers:
        if name.lower() in ("content-type", "ce_datacontenttype") and any(
            kind in (content or b"").lower() for kind in (b"avro", b"protobuf")
        ):
            return "the content type is not JSON"
    if value[:1] == b"\x00" and len(value) >= 5:
        return "a schema registry's magic byte and id, such as Avro with a schema"
    if value[:1] and value[0] < 0x20 and value[:1] not in b"\t\n\r":
        return "a binary format"
    if value.startswith((b"Obj\x01", b"PAR1")):
        return "an Avro or Parquet file"
    return ""


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS else float(digits)


def _wire(body: dict[str, Any]) -> _Wire | Dead:
    wire = _Wire()
    for name in ("type", "event"):
        found = body.get(name)
        if found is not None and not isinstance(found, str):
            return Dead("not_an_event", f"{name} is no text")
        setattr(wire, name, found and found.encode(errors="replace").decode())
    for name in ("userId", "anonymousId"):
        found = body.get(name)
        text = _text(found)
        if found is not None and text is None:
            if name == "anonymousId" and wire.userId:
                continue
            return Dead("not_an_event", f"{name} is neither text nor a number")
        setattr(wire, name, text)
    for name in ("timestamp", "originalTimestamp", "receivedAt"):
        found = body.get(name)
        if found is not None and not isinstance(found, str):
            found = "not text"  # a time that is there but unreadable is no reason to take another
        setattr(wire, name, found)
    given = body.get("messageId")  # repeats are found also by what UTF-8 can't say
    wire.messageId = _text(given.encode(errors="backslashreplace").decode() if isinstance(given, str) else given)
    wire.properties = _properties(body.get("properties"))
    traits, context = body.get("traits"), body.get("context")
    wire.traits = traits if isinstance(traits, dict) else None
    inner = context.get("traits") if isinstance(context, dict) else None
    wire.context = _Context(inner) if isinstance(inner, dict) else None
    return wire


def _text(found: Any) -> str | None:
    """Text and whole numbers; None for the rest and for text that UTF-8 can't say."""
    if isinstance(found, float) and found.is_integer():
        found = int(found) if abs(found) < 1e15 else found
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if isinstance(found, str):
        try:
            found.encode()
        except UnicodeEncodeError:
            return None
        return found
    return None


def _keepable(found: Any, depth: int = 0) -> bool:
    """Whether it can be written down again: half of a surrogate pair (text cut within an emoji) can't, nor what is nested without end."""
    if isinstance(found, str):
        return found.isascii() or _text(found) is not None
    if isinstance(found, dict):
        return depth < _DEPTH and all(_keepable(name) and _keepable(value, depth + 1) for name, value in found.items())
    if isinstance(found, list):
        return depth < _DEPTH and all(_keepable(value, depth + 1) for value in found)
    return True


def _number(found: Any) -> float | None:
    if isinstance(found, bool):
        return None
    if isinstance(found, (int, float, str)):
        try:
            number = float(found)
        except (ValueError, OverflowError):
            return None
        return number if abs(number) <= LARGEST_NUMBER else None  # which neither infinity nor NaN is
    return None


def _fields(kind: type[msgspec.Struct], found: dict[str, Any]) -> dict[str, Any]:
    """What of ``found`` fits the struct's text and number fields."""
    fitting: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.name not in found or field.name == "products":
            continue
        value = found[field.name]
        fit: Any = value is True if field.type is bool else _text(value) if field.type is str else _number(value)
        if fit is not None:
            fitting[field.name] = fit
    return fitting


def _properties(found: Any) -> Properties | None:
    if not isinstance(found, dict):
        return None
    products = found.get("products")
    items = [Item(**_fields(Item, product)) for product in products if isinstance(product, dict)] if isinstance(products, list) else []
    return Properties(**_fields(Properties, found), products=items)
