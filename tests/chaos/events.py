"""What a shop tells in a replay, and what Mailtide should know afterwards."""

from __future__ import annotations

import collections
import random
import time
from typing import Any

import msgspec

from mailtide.settings import load
from models.triggers.passes import Pass, describe
from schemas.config import Settings
from schemas.events import Dead, decode
from schemas.mail import iso, seconds
from transport.clients import partition_of

DAY = 86400.0
DAYS = 16
START = seconds("2024-03-04T15:00:00Z")  # more than a year ago: what `customer show` says then doesn't hang on today
GOODS = (("Whole Milk", "Milk", 3.5), ("Rye Bread", "Bread", 4.0), ("Ground Coffee", "Coffee", 9.0), ("Olive Oil", "Oil", 12.0))
Told = list[tuple[str, bytes]]  # (customer, event) in time order


def stream(seed: int, after: int = 0, customers: int = 40) -> Told:
    """Everybody consents on the first day, looks around daily and orders now and then. ``after``: so many streams were told before."""
    chance, start = random.Random(seed), START + after * DAYS * DAY
    found: list[tuple[float, str, dict[str, Any]]] = []
    for number in range(customers):
        name = f"c{seed}-{number}"
        traits = {"email": f"{name}@customers.example.com", "firstName": "Ann", "consent": {"marketing": True}}
        found.append((start + number, name, {"type": "identify", "traits": traits}))
        for day in range(DAYS):
            at = start + day * DAY + 60 + chance.randrange(6 * 3600)
            for look in range(4):
                found.append((at + look, name, {"type": "track", "event": "Product Viewed", "properties": {"product_id": "p0"}}))
            if chance.random() < 0.2:
                found.append((at + 9, name, {"type": "track", "event": "Order Completed", "properties": _order(chance, f"{name}-{day}")}))
    found.sort(key=lambda row: row[0])
    return [
        (name, msgspec.json.encode(body | {"messageId": f"m{seed}-{place}", "userId": name, "timestamp": iso(at)}))
        for place, (at, name, body) in enumerate(found)
    ]


def _order(chance: random.Random, name: str) -> dict[str, Any]:
    kind = chance.randrange(len(GOODS))
    goods, category, price = GOODS[kind]
    product = {"product_id": f"p{kind}", "name": goods, "category": category, "price": price, "quantity": 1}
    return {"order_id": f"o{name}", "total": price, "currency": "USD", "products": [product]}


def undisturbed(settings: Settings, told: Told, wall: float) -> dict[str, dict[str, Any]]:
    """What should be known of each customer at ``wall``: the same events through one pass, in one go."""
    offsets: collections.Counter[int] = collections.Counter()
    events = []
    for customer, value in told:
        place = partition_of(customer.encode(), settings.kafka.partitions)
        event = decode(value, time.time(), place, offsets[place])
        assert not isinstance(event, Dead), event
        offsets[place] += 1
        events.append(event)
    states = Pass(load({}).trigger, settings.sending, settings.shop).run({}, events, 0.0, wall, 0).states
    return {customer: describe(state, wall) for customer, state in states.items()}
