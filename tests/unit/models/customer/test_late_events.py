"""An event that lay in a foreign partition comes late: what the shop said last still counts, by the events' own times."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.customer.features import DAY, apply, standing
from models.customer.state import CustomerState, load
from models.triggers.passes import Pass
from schemas.config import SendingSettings, ShopSettings, Trigger
from schemas.events import MAX_AHEAD, Event, Item, Properties

START = 1.77e9
SHOP = (SendingSettings(), ShopSettings())


def said(at: float, kind: str, offset: int = 0, **traits: Any) -> Event:
    return Event("c", kind, at, f"m{offset}", Properties(), traits or None, 0, offset, kind)


words = st.sampled_from(
    [
        ("Subscribed", {}),
        ("Unsubscribed", {}),
        ("identify", {"consent": {"marketing": True}}),
        ("identify", {"consent": {"marketing": False}}),
        ("identify", {"email": "a@b.example"}),
        ("identify", {"email": "new@b.example", "consent": {"marketing": True}}),
        ("identify", {"email": None}),
    ]
)


def after(events: list[Event]) -> tuple[Any, ...]:
    state = CustomerState()
    for event in events:
        standing(state, event)
    own = state.standing
    return own.consent, own.unsubscribed, own.address, own.address and own.mailbox


@given(st.lists(words, max_size=8), st.randoms())
def test_consent_address_and_objection_are_what_was_said_last_in_whatever_order_it_comes(
    stream: list[tuple[str, dict[str, Any]]], shuffle: random.Random
) -> None:
    events = [said(START + place * (MAX_AHEAD + 1), kind, **traits) for place, (kind, traits) in enumerate(stream)]
    mixed = events.copy()
    shuffle.shuffle(mixed)
    assert after(mixed) == after(events)


def test_where_clocks_may_be_to_blame_the_objection_is_believed_and_a_later_permission_too() -> None:
    ahead = [said(START + 60, "identify", consent={"marketing": True}), said(START + 60, "Subscribed"), said(START, "Unsubscribed")]
    assert after(ahead)[:2] == (False, True)
    assert after([*ahead, said(START + 30, "Subscribed")])[:2] == (False, True), "older than the permission which that objection undid"
    assert after([*ahead, said(START + 61, "Subscribed")])[:2] == (True, False)


@pytest.mark.parametrize("taken", [None, False, {"marketing": None}, {"marketing": False}, {"marketing": "false"}, {"marketing": 0}])
def test_a_consent_that_is_not_plainly_true_any_more_is_none(taken: Any) -> None:
    given = said(START, "identify", consent={"marketing": True})
    assert after([given])[0]
    assert after([given, said(START + 1, "identify", consent={"sms": False})])[0], "of marketing it says nothing"
    assert not after([given, said(START + 1, "identify", consent=taken)])[0]


def order(at: float, total: float, offset: int = 0) -> Event:
    goods = [Item("p", name="Rye", category="Bread", price=total)]
    return Event("c", "Order Completed", at, f"o{offset}", Properties(total=total, products=goods), None, 0, offset, "Order Completed")


def test_a_late_order_weighs_what_its_age_is_and_is_not_the_last() -> None:
    due, late = CustomerState(), CustomerState()
    first, second = order(START, 10.0), order(START + 45 * DAY, 30.0)
    for one in (first, second):
        apply(due, one, "UTC")
    for one in (second, first):
        apply(late, one, "UTC")
    for name in ("count", "total", "last", "last_value", "last_lines", "decayed", "value", "lines"):
        assert getattr(late.orders, name) == pytest.approx(getattr(due.orders, name)), name


def test_a_late_event_does_not_restart_a_wait_that_a_newer_one_began() -> None:
    cart = Trigger(name="cart_abandoned", on="Product Added", wait=3600, restart=True)
    passing = Pass([cart], *SHOP)
    states: dict[str, bytes] = {}
    for offset, at in enumerate((START, START + 600, START + 300)):
        states = passing.run(states, [said(at, "Product Added", offset)], 0.0, 4e9, 0).states
    (timer,) = load(states["c"]).timers
    assert timer.at == START + 600 + 3600


def test_an_order_that_a_slower_clock_stamped_before_its_checkout_ends_the_wait_and_an_old_one_does_not() -> None:
    passing = Pass([Trigger(name="checkout_abandoned", on="Checkout Started", wait=3600, cancel_on=("Order Completed",))], *SHOP)
    for at, left in ((START - 2, 0), (START - MAX_AHEAD - 1, 1)):
        states = passing.run({}, [said(START, "Checkout Started"), order(at, 5.0, 1)], 0.0, 4e9, 0).states
        assert len(load(states["c"]).timers) == left
