"""Each trigger of docs/lifecycle.toml fires from events, and is cancelled by what its condition or ``cancel_on`` names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from mailtide.settings import load, problems_and_settings
from models.customer.state import next_timer
from models.phrasebook.book import Book
from models.triggers.passes import Pass, Result
from schemas.config import SendingSettings, Settings, ShopSettings, Trigger
from schemas.errors import SettingsError
from schemas.events import Dead, Event, decode
from schemas.mail import Gone, Intent, seconds
from tests.paths import ROOT

FILE = ROOT / "docs" / "lifecycle.toml"
HOUR, DAY = 3600.0, 86400.0
START = seconds("2026-03-02T15:00:00Z")
PRODUCT = {"product_id": "p-1", "name": "Rye bread", "category": "Bakery", "price": 2.5, "old_price": 3.0, "currency": "USD"}
ORDER = {"order_id": "o-1", "total": 60.0, "products": [PRODUCT]}
WILLING = {"email": "ann@example.com", "consent": {"marketing": True}, "birthday": "1990-05-04"}
Told = tuple[str, dict[str, Any]]


def lifecycle() -> tuple[Trigger, ...]:
    found = problems_and_settings(FILE, {})
    assert isinstance(found, Settings), found
    return found.trigger


class Shop:
    """One customer, one trigger, a clock."""

    def __init__(self, trigger: Trigger) -> None:
        self.passing = Pass([trigger], SendingSettings(), ShopSettings(timezone="UTC"))
        self.state: dict[str, bytes] = {}
        self.offset, self.now = 0, START

    def tell(self, *said: Told) -> Result:
        result = self.passing.run(self.state, [self._event(*one) for one in said], self.now, self.now, 0)
        self.state |= result.states
        return result

    def later(self, seconds: float) -> list[Intent]:
        """What fires until then."""
        self.now += seconds
        fired: list[Intent] = []
        while self.state and next_timer(self.state["c"]) <= self.now:
            result = self.passing.fire(self.state, self.now, self.now, 0)
            self.state |= result.states
            fired += result.intents
        return fired

    def _event(self, name: str, properties: dict[str, Any]) -> Event:
        self.offset += 1
        at = datetime.fromtimestamp(self.now, UTC).isoformat()
        body: dict[str, Any] = {"messageId": f"m-{self.offset}", "userId": "c", "timestamp": at}
        body |= (
            {"type": "identify", "traits": properties} if name == "identify" else {"type": "track", "event": name, "properties": properties}
        )
        found = decode(json.dumps(body).encode(), 4e9, 0, self.offset)
        assert not isinstance(found, Dead)
        return found


# name: what is told before, what starts it, until it has fired, what cancels it, a fact of the mail
CASES: dict[str, tuple[list[Told], Told, float, Told, str]] = {
    "welcome": ([], ("identify", WILLING), DAY, ("Unsubscribed", {}), ""),
    "post_purchase": ([], ("Order Completed", ORDER), 2 * DAY, ("Order Refunded", {"order_id": "o-1"}), "o-1"),
    "cart_abandoned": ([], ("Product Added", PRODUCT), 8 * HOUR, ("Order Completed", ORDER), "Rye bread"),
    "checkout_abandoned": ([], ("Checkout Started", ORDER), 2 * HOUR, ("Order Completed", ORDER), "Rye bread"),
    "browse_abandoned": ([("Order Completed", ORDER)], ("Product Viewed", PRODUCT), 2 * DAY, ("Product Added", PRODUCT), "Rye bread"),
    "back_in_stock": ([], ("Product Back In Stock", PRODUCT), HOUR, ("Order Completed", ORDER), "Rye bread"),
    "price_drop": ([], ("Price Dropped", PRODUCT), HOUR, ("Order Completed", ORDER), "$3.00"),
    "review_request": ([], ("Order Completed", ORDER), 11 * DAY, ("Product Reviewed", {"product_id": "p-1", "rating": 5}), "Rye bread"),
    "complaint_care": ([], ("Support Ticket Opened", {"ticket_id": "t-9"}), HOUR, ("Support Ticket Closed", {"ticket_id": "t-9"}), "t-9"),
    "refund_care": ([("Order Completed", ORDER)], ("Order Refunded", {"order_id": "o-1"}), 2 * HOUR, ("Support Ticket Opened", {}), "o-1"),
    "birthday": ([], ("identify", WILLING), 63 * DAY, ("Unsubscribed", {}), ""),
    "vip_thanks": ([("Order Completed", ORDER)] * 11, ("Order Completed", ORDER), 4 * DAY, ("Order Refunded", {"order_id": "o-1"}), ""),
}
BY_NAME = {trigger.name: trigger for trigger in lifecycle()}


def test_the_file_holds_the_six_that_serve_by_default_and_every_chapter_of_the_phrase_book() -> None:
    six = load({}).trigger
    assert lifecycle()[: len(six)] == six
    assert len(six) == 6
    assert set(BY_NAME) == set(Book.load().triggers)
    assert set(CASES) == set(BY_NAME) - {"replenishment", "win_back", "coupon", "recommendation"}, "those are tested with the looks"


@pytest.mark.parametrize("name", CASES)
def test_it_fires_with_its_facts(name: str) -> None:
    before, begin, wait, _end, fact = CASES[name]
    shop = Shop(BY_NAME[name])
    shop.tell(*before)
    shop.later(HOUR)
    shop.tell(begin)
    (intent,) = shop.later(wait)
    assert intent.trigger == name
    assert fact in msgspec.json.encode(intent.facts).decode()


@pytest.mark.parametrize("name", CASES)
def test_it_ends_before_it_fires_and_after(name: str) -> None:
    before, begin, wait, end, _fact = CASES[name]
    shop = Shop(BY_NAME[name])
    shop.tell(*before)
    shop.later(HOUR)
    shop.tell(begin)
    if BY_NAME[name].wait or name == "birthday":
        shop.now += 60
        shop.tell(end)
        assert shop.later(wait) == []
    shop = Shop(BY_NAME[name])
    shop.tell(*before)
    shop.later(HOUR)
    shop.tell(begin)
    (intent,) = shop.later(wait)
    shop.now = seconds(intent.due) + 60
    gone = [told.intent_id for told in shop.tell(end).gate if isinstance(told, Gone)]
    assert gone == [intent.intent_id]


def test_a_welcome_greets_once_whichever_event_comes_first() -> None:
    for first in (("identify", WILLING), ("Subscribed", {}), ("Order Completed", ORDER)):
        shop = Shop(BY_NAME["welcome"])
        if first[0] == "Order Completed":
            shop.passing = Pass([msgspec.structs.replace(BY_NAME["welcome"], on=("Order Completed",))], SendingSettings(), ShopSettings())
            shop.tell(("identify", WILLING))
        shop.tell(first)
        shop.tell(("Subscribed", {}), ("identify", WILLING))
        assert [intent.trigger for intent in shop.later(DAY)] == ["welcome"]
        shop.tell(("Subscribed", {}), ("Order Completed", ORDER))
        assert shop.later(DAY) == []


def test_a_second_order_welcomes_nobody() -> None:
    shop = Shop(BY_NAME["welcome"])
    shop.tell(("Order Completed", ORDER), ("Order Completed", ORDER))
    shop.later(DAY)
    shop.tell(("Email Opened", {}))
    shop.passing = Pass([msgspec.structs.replace(BY_NAME["welcome"], on=("Order Completed",))], SendingSettings(), ShopSettings())
    shop.tell(("identify", WILLING), ("Order Completed", ORDER))
    assert shop.later(DAY) == []


def test_a_cart_waits_from_its_last_product_on() -> None:
    shop = Shop(BY_NAME["cart_abandoned"])
    shop.tell(("Product Added", PRODUCT))
    assert shop.later(3 * HOUR) == []
    shop.tell(("Product Added", PRODUCT | {"name": "Oat milk"}))
    assert shop.later(2 * HOUR) == []
    (intent,) = shop.later(20 * HOUR)  # past the quiet hours
    assert [product.name for product in intent.facts.products] == ["Oat milk"]


def test_a_birthday_comes_every_year_at_nine_and_leaves_no_date_of_birth() -> None:
    shop = Shop(BY_NAME["birthday"])
    shop.tell(("identify", WILLING))
    assert b"1990" not in shop.state["c"]
    fired = shop.later(3 * 366 * DAY)
    assert [intent.due for intent in fired] == [f"{year}-05-04T09:00:00.000Z" for year in (2026, 2027, 2028)]
    assert [intent.occurrence for intent in fired] == ["2026", "2027", "2028"]


@pytest.mark.parametrize("birthday", ["", "1990-13-40", "May 4th", 5, None, ["1990-05-04"]])
def test_a_birthday_that_is_none_starts_nothing(birthday: object) -> None:
    shop = Shop(BY_NAME["birthday"])
    shop.tell(("identify", WILLING | {"birthday": birthday}))
    assert shop.later(400 * DAY) == []


def test_what_orders_may_follow_a_mail_is_a_setting() -> None:
    trigger = BY_NAME["post_purchase"]
    for days, credited in ((3.0, 0), (5.0, 1)):
        shop = Shop(trigger)
        shop.passing = Pass([trigger], SendingSettings(), ShopSettings(), attribution=days * DAY)
        shop.tell(("Order Completed", ORDER))
        (intent,) = shop.later(2 * DAY)
        shop.now = seconds(intent.due) + 4 * DAY
        followed = shop.tell(("Order Completed", ORDER)).feedback
        assert [told.intent_id for told in followed] == [intent.intent_id] * credited


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"on": ["identify", "Ordr Completed"]}, "did you mean 'Order Completed'"),
        ({"on": []}, "is no event"),
        ({"kind": "birthday", "on": "Order Completed"}, "write on = 'identify'"),
    ],
)
def test_what_can_not_start_is_named(change: dict[str, Any], said: str) -> None:
    trigger = msgspec.convert({"name": "x", "on": "identify"} | change, Trigger)
    with pytest.raises(SettingsError, match=said):
        Pass([trigger], SendingSettings(), ShopSettings())
