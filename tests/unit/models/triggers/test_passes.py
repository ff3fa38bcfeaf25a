from __future__ import annotations

import itertools
import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailtide.settings import load
from models.customer.state import dump, sizes
from models.customer.state import load as load_state
from models.mail import gate
from models.triggers.passes import Pass, Result, applied_offset, describe, next_timer
from models.triggers.rules import MOST_WAITS
from schemas.config import SendingSettings, ShopSettings, Trigger
from schemas.errors import SettingsError
from schemas.events import Dead, Event, decode
from schemas.mail import Gone, Source, Standing, encode, seconds

DAY = 86400.0
START = seconds("2026-03-02T15:00:00Z")


def event(offset: int, at: float, name: str = "Order Completed", customer: str = "c-1", message: str = "", **properties: Any) -> Event:
    said: dict[str, Any] = {"messageId": message or f"m-{offset}", "userId": customer}
    from datetime import UTC, datetime

    said["timestamp"] = datetime.fromtimestamp(at, UTC).isoformat()
    if name == "identify":
        said |= {"type": "identify", "traits": properties}
    else:
        said |= {"type": "track", "event": name, "properties": properties}
    found = decode(json.dumps(said).encode(), 4e9, 0, offset)
    assert not isinstance(found, Dead), found
    return found


class World:
    """States in a dict, as intake keeps them in its store."""

    def __init__(self, *triggers: Trigger) -> None:
        self.passing = Pass(triggers or load({}).trigger, SendingSettings(), ShopSettings())
        self.states: dict[str, bytes] = {}
        self.said: list[Result] = []

    def run(self, *events: Event) -> Result:
        result = self.passing.run({e.customer: self.states[e.customer] for e in events if e.customer in self.states}, events, 0.0, 4e9, 0)
        return self._keep(result)

    def fire(self, now: float) -> Result:
        return self._keep(self.passing.fire({c: s for c, s in self.states.items() if next_timer(s) <= now}, now, 4e9, 0))

    def _keep(self, result: Result) -> Result:
        self.states |= result.states
        self.said.append(result)
        return result


CARE = Trigger(
    name="post_purchase", on="Order Completed", wait=DAY, condition="not refunded_since", use_by=3 * DAY, cancel_on=("Order Refunded",)
)
WORDY = [{"product_id": "🧁" * 80, "name": "🧁" * 80, "category": f"{n}" + "🧁" * 64, "price": 1} for n in range(3)]
names = st.sampled_from(["Order Completed", "Product Viewed", "Email Opened", "Unsubscribed", "Something Else", "Support Ticket Opened"])
streams = st.lists(st.tuples(st.integers(0, 3), names, st.integers(0, 40), st.booleans()), min_size=1, max_size=40)


def unfold(stream: list[tuple[int, str, int, bool]]) -> list[Event]:
    at, found = START, []
    for offset, (customer, name, hours, again) in enumerate(stream):
        at += hours * 3600
        message = f"m-{offset - 1}" if again and offset else f"m-{offset}"
        found.append(
            event(offset, at, name, f"c-{customer}", message, total=5.0, products=[{"product_id": "p", "category": "Milk", "price": 5}])
        )
    return found


@given(streams, st.lists(st.integers(1, 40), max_size=5), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_any_batching_and_any_replay_leave_the_same_states(stream: list[tuple[int, str, int, bool]], cuts: list[int], back: int) -> None:
    events = unfold(stream)
    whole, pieces = World(CARE), World(CARE)
    whole.run(*events)
    edges = sorted({0, *(cut for cut in cuts if cut < len(events)), len(events)})
    for low, high in itertools.pairwise(edges):
        pieces.run(*events[max(0, low - back) : high])  # a crash reads some of them again
    assert pieces.states == whole.states


@given(streams)
@settings(max_examples=40, deadline=None)
def test_a_state_survives_its_bytes_and_names_its_offset(stream: list[tuple[int, str, int, bool]]) -> None:
    events = unfold(stream)
    world = World(CARE)
    world.run(*events)
    for customer, data in world.states.items():
        assert dump(load_state(data)) == data
        assert applied_offset(data) == max(e.offset for e in events if e.customer == customer)


def test_an_offset_counts_once_also_where_producers_give_no_message_id() -> None:
    world = World(CARE)
    events = [msgspec.structs.replace(event(n, START + n, "Product Viewed"), message_id="") for n in range(5)]
    world.run(*events)
    before = dict(world.states)
    world.run(*events[2:])
    assert world.states == before


def test_the_same_message_counts_once() -> None:
    world = World(CARE)
    for offset in range(100):
        world.run(event(offset, START, "Product Viewed", message="same"))
    assert describe(world.states["c-1"], START)["counts"] == {"Product Viewed": 1}


def test_an_order_waits_then_fires_with_its_facts_and_the_same_id_at_each_replay() -> None:
    ids = set()
    for _ in range(2):
        world = World(CARE)
        world.run(
            event(0, START, order_id="o-7", total=31.5, currency="USD", products=[{"product_id": "p-1", "name": "Rye", "price": 2.5}])
        )
        assert not world.fire(START + DAY - 1).intents
        (intent,) = world.fire(START + DAY).intents
        assert intent.facts.values["order_id"] == "o-7"
        assert intent.facts.products[0].price == 2.5
        assert seconds(intent.expires) - seconds(intent.due) == 3 * DAY
        ids.add(intent.intent_id)
        assert not world.fire(START + 2 * DAY).intents
    assert len(ids) == 1


def test_an_intent_names_the_event_that_began_its_wait_in_its_own_topic() -> None:
    passing = Pass([CARE], SendingSettings(), ShopSettings(), topic="shop.customer.events")
    states = passing.run({}, [event(3, START, order_id="o-1"), event(4, START + 60, "Product Viewed")], 0.0, 4e9, 2).states
    (intent,) = passing.fire(states, START + 2 * DAY, 4e9, 2).intents
    assert intent.source == Source("shop.customer.events", 2, 3)


def test_the_same_cart_may_be_left_again_and_the_same_order_fires_once() -> None:
    cart = Trigger(name="cart_abandoned", on="Product Added", wait=3600, re_entry=7 * DAY)
    world = World(cart, msgspec.structs.replace(CARE, re_entry=0.0))
    for offset, days in enumerate((0, 1, 8)):
        world.run(event(offset, START + days * DAY, "Product Added", cart_id="always-the-same"))
        world.fire(START + days * DAY + 7200)
    for offset in (10, 11):
        world.run(event(offset, START + 9 * DAY + offset, order_id="o-1", message=f"again-{offset}"))
        world.fire(START + 11 * DAY + offset)
    found = [(intent.trigger, intent.intent_id) for said in world.said for intent in said.intents]
    assert [trigger for trigger, _ in found] == ["cart_abandoned", "cart_abandoned", "post_purchase"]
    assert len(set(found)) == 3


def test_a_trigger_whose_mail_would_have_nothing_to_name_does_not_fire() -> None:
    world = World(Trigger(name="back_in_stock", on="Product Back In Stock"))
    world.run(
        event(0, START, "Product Back In Stock", product_id="p-1"),
        event(1, START, "Product Back In Stock", products=[{"product_id": "p-1", "name": "N" * 90}]),
    )
    assert world.fire(START + 1).intents == []
    world.run(event(2, START + 2, "Product Back In Stock", products=[{"product_id": "p-1", "name": "Rye"}]))
    assert [intent.facts.products[0].name for intent in world.fire(START + 3).intents] == ["Rye"]


def test_an_intent_says_what_the_gate_will_say_so_that_no_words_are_written_for_it() -> None:
    def foreseen(*before: Event) -> str | None:
        world = World(CARE)
        world.run(*before, event(5, START, order_id="o-1"))
        (intent,) = world.fire(START + DAY).intents
        return intent.foreseen

    held_out = SendingSettings().holdout
    assert not gate.held_out("c-1", held_out), "choose another customer: this one is held out"
    willing = event(1, START - DAY, "identify", email="ann@example.com", consent={"marketing": True})
    assert foreseen() == "no_consent"
    assert foreseen(willing) is None
    assert foreseen(willing, event(2, START - DAY, "Unsubscribed")) == "unsubscribed"


def test_quiet_hours_put_the_due_time_off_to_the_morning() -> None:
    world = World(CARE)
    night = seconds("2026-03-03T03:30:00Z")  # 22:30 in New York
    world.run(event(0, night))
    assert not world.fire(night + DAY).intents
    (intent,) = world.fire(night + 2 * DAY).intents
    assert intent.due == "2026-03-04T13:00:00.000Z"


def test_a_refund_ends_the_wait_and_one_after_firing_ends_the_intent() -> None:
    world = World(CARE)
    world.run(event(0, START), event(1, START + 60, "Order Refunded"))
    assert not world.fire(START + 2 * DAY).intents
    world = World(CARE)
    world.run(event(0, START))
    (intent,) = world.fire(START + DAY).intents
    result = world.run(event(1, START + DAY + 60, "Order Refunded"))
    assert [told.intent_id for told in result.gate if isinstance(told, Gone)] == [intent.intent_id]


def test_an_identify_does_not_undo_an_unsubscribe_but_subscribing_does() -> None:
    world = World(CARE)

    def standing(result: Result) -> Standing:
        (told,) = [told for told in result.gate if isinstance(told, Standing)]
        return told

    first = standing(world.run(event(0, START, "identify", email="a@example.com", consent={"marketing": True})))
    assert first.consent
    assert first.address
    gone = standing(world.run(event(1, START + 1, "Unsubscribed")))
    assert gone.unsubscribed
    assert not gone.consent
    again = world.run(event(2, START + 2, "identify", email="a@example.com", consent={"marketing": True}))
    assert load_state(again.states["c-1"]).standing.unsubscribed
    back = standing(world.run(event(3, START + 3, "Subscribed")))
    assert back.consent
    assert not back.unsubscribed


def test_silence_brings_win_back_once() -> None:
    win_back = Trigger(name="win_back", on="rhythm", kind="win_back", condition="not visited_since", re_entry=60 * DAY, threshold=0.5)
    world = World(win_back)
    world.run(event(0, START), event(1, START + 5 * DAY))
    fired = [intent for day in range(90) for intent in world.fire(START + day * DAY).intents]
    assert [intent.trigger for intent in fired] == ["win_back"]
    assert 35 <= (seconds(fired[0].due) - START) / DAY <= 39


def test_a_steady_rhythm_of_goods_brings_a_reminder_before_they_run_out() -> None:
    reminder = Trigger(name="replenishment", on="rhythm", kind="replenishment", condition="not category_bought_since", re_entry=14 * DAY)
    world = World(reminder)
    for n in range(8):
        world.run(event(n, START + 14 * n * DAY, products=[{"product_id": "p", "name": "Dark roast", "category": "Coffee", "price": 7.49}]))
    fired = [intent for day in range(98, 130) for intent in world.fire(START + day * DAY).intents]
    assert fired[0].facts.products[0].name == "Dark roast"
    assert fired[0].facts.products[0].goods == "coffee_tea"
    assert 0.75 * 14 <= (seconds(fired[0].due) - START) / DAY - 98 <= 1.5 * 14


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"on": "Order Complete"}, "is no event"),
        ({"condition": "ordrs > 2"}, "did you mean 'orders'"),
        ({"condition": "__import__('os')"}, "what no condition may"),
        ({"condition": "orders >"}, "is no condition"),
        ({"kind": "coupon"}, "needs a code"),
        ({"code": "{first_name}"}, "take braces"),
        ({"cancel_on": ("Nothing",)}, "no event"),
    ],
)
def test_a_trigger_that_can_not_work_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        World(Trigger(**({"name": "x", "on": "Order Completed"} | change)))


def test_a_customer_of_a_year_stays_small() -> None:
    world, chosen = World(), random.Random(4)
    for n in range(300):
        products = [
            {
                "product_id": f"p{n}-{k}",
                "name": f"Some product {k}",
                "category": f"Sort {int(chosen.paretovariate(0.7)) % 200}",
                "price": 1.5,
            }
            for k in range(9)
        ]
        world.run(event(n, START + n * DAY, order_id=f"o-{n}", products=products))
        world.fire(START + n * DAY + DAY / 2)
    known = sizes(world.states["c-1"])
    assert known.features <= 2048
    assert known.ids == 64 * 12


def test_what_producers_write_at_length_does_not_fill_the_state() -> None:
    world, novel = World(), "n" * 100_000
    for n in range(20):
        product = {"product_id": f"{n}{novel}", "name": novel, "category": f"{n % 3}{novel}", "price": 1.5}
        world.run(event(n, START + n * 8 * DAY, order_id=f"o-{n}{novel}", products=[product]))
    assert len(world.states["c-1"]) < 4096
    (intent, *_) = world.fire(START + 200 * DAY).intents
    assert len(intent.occurrence) <= 80


def test_nor_does_it_fill_what_is_said_of_a_product_that_can_be_named() -> None:
    world, novel = World(), "n" * 90_000
    novels = {"product_id": novel, "sku": novel, "category": novel, "brand": novel}
    products = [{"name": "Bread", "price": 1.5, **novels}, {"name": novel, "price": 1, **novels}]
    said = [world.run(event(n, START + n * DAY, order_id=novel, currency=novel, products=products)) for n in range(3)]
    said.append(world.fire(START + 200 * DAY))
    assert len(world.states["c-1"]) < 4096
    (product,) = next(intent.facts.products for intent in said[-1].intents if intent.facts.products)
    assert (product.product_id, product.name, product.category, product.currency) == ("", "Bread", "n" * 64, "n" * 16)
    assert max(len(told) for result in said for told in (*result.learning, *map(encode, result.intents))) < 2048


def test_a_customer_who_is_all_guests_of_the_shop_stays_within_a_record() -> None:
    world = World(Trigger(name="post_purchase", on="Order Completed", wait=DAY, re_entry=0, use_by=DAY))
    world.run(*[event(n, START + n, order_id=f"{n:04}" + "🧁" * 76, message=f"m-{n}", products=WORDY) for n in range(2 * MOST_WAITS)])
    assert len(world.states["c-1"]) < 2_000_000
    assert len(world.fire(START + 2 * DAY).intents) == MOST_WAITS


def test_a_basket_of_a_whole_mebibyte_is_told_to_the_learner_in_part() -> None:
    goods = [{"category": f"k{n % 40}", "name": f"n{n}"} for n in range(25_000)]
    whole = event(0, START, products=goods)
    assert len(whole.properties.products) == 25_000
    assert 100_000 < max(map(len, World().run(whole).learning)) < 1 << 20
