"""Who objects, or is erased, is learned from no more; and the tone of a mail is drawn by its cluster's chances."""

from __future__ import annotations

from typing import Any

import msgspec

from models.phrasebook.book import TONES
from models.triggers.passes import Pass
from schemas.config import SendingSettings, ShopSettings, Trigger
from schemas.events import Dead, Event, decode
from schemas.learning import Forgotten, Learning, ToneChances
from schemas.mail import encode, iso
from schemas.topics import TONES as TONES_TOPIC

T = 1_700_000_000.0
CARE = Trigger(name="post_purchase", on="Order Completed", wait=60.0, use_by=86400.0)


def event(offset: int, name: str, customer: str = "u1", **more: Any) -> Event:
    body: dict[str, Any] = {"userId": customer, "messageId": f"m{offset}", "timestamp": iso(T + offset)}
    body |= {"type": "identify", "traits": more} if name == "identify" else {"type": "track", "event": name, "properties": more}
    found = decode(encode(body), 4e9, 0, offset)  # type: ignore[arg-type]
    assert not isinstance(found, Dead)
    return found


def order(offset: int, customer: str = "u1") -> Event:
    return event(
        offset, "Order Completed", customer, total=9.0, products=[{"product_id": "p", "name": "Milk", "category": "Milk", "price": 9}]
    )


def passing() -> Pass:
    return Pass([CARE], SendingSettings(), ShopSettings())


def told(values: list[bytes]) -> list[Any]:
    return [msgspec.json.decode(value, type=Learning) for value in values]


def test_an_objection_is_passed_on_and_nothing_is_learned_after_it() -> None:
    made = passing()
    known = {"email": "u1@customers.example.com", "consent": {"marketing": True}}
    first = made.run({}, [event(0, "identify", **known), order(1)], 0.0, 4e9, 0)
    assert len(told(first.learning)) == 2
    second = made.run(first.states, [event(2, "Unsubscribed"), order(3)], 0.0, 4e9, 0)
    assert [type(one) for one in told(second.learning)] == [Forgotten]
    assert [(one.intent_id, one.kind) for one in second.feedback if one.kind != "ordered"] == [("", "unsubscribed")]
    third = made.run(second.states, [event(4, "Subscribed"), order(5)], 0.0, 4e9, 0)
    assert len(told(third.learning)) == 2


def test_whoever_has_no_address_any_more_is_erased_from_what_was_learned() -> None:
    made = passing()
    first = made.run({}, [event(0, "identify", email="u1@customers.example.com")], 0.0, 4e9, 0)
    second = made.run(first.states, [event(1, "identify", email=None)], 0.0, 4e9, 0)
    assert [one.customer for one in told(second.learning)] == ["u1"]
    assert [(one.intent_id, one.kind) for one in second.feedback] == [("", "erased")]


def test_tones_are_drawn_by_the_clusters_chances_and_the_intent_knows_them() -> None:
    made = passing()
    orders = [order(n, f"u{n}") for n in range(200)]
    states = made.run({}, orders, 0.0, 4e9, 0).states

    def tones() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for intent in made.fire(states, T + 1000, 4e9, 0).intents:
            found.setdefault(intent.tone, []).append(intent.propensity)
        return found

    by_lot = tones()
    assert set(by_lot) == set(TONES)
    made.update(TONES_TOPIC, encode(ToneChances("", {"warm": 0.02, "crisp": 0.9, "playful": 0.08}, 50, iso(T))))
    learned = tones()
    assert len(learned["crisp"]) > 160
    assert {chance for each in learned.values() for chance in each} <= {0.02, 0.9, 0.08}
    assert {round(chance, 9) for each in by_lot.values() for chance in each} == {round(1 / 3, 9)}
    assert tones() == learned
