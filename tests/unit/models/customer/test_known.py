"""Whatever a state holds, what is known of it is a number, and what a model is told is finite."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.customer.known import NAMES, cluster_vector, entropy, named, visit_vector
from models.customer.state import CustomerState, Mix, Orders, Visits
from models.triggers.passes import Pass, describe
from schemas.config import SendingSettings, ShopSettings
from schemas.events import Dead, decode

any_number = st.floats() | st.sampled_from([0.0, 1.0, -1.0, 1e308, 1e300, 5e-324])
any_count = st.integers(0, 5) | st.integers(-(2**63), 2**63 - 1)
visits = st.builds(
    Visits, any_count, *[any_number] * 9, packed_weekdays=st.binary(min_size=28, max_size=28), packed_dayparts=st.just(bytes(16))
)
orders = st.builds(Orders, any_count, *[any_number] * 10)
mixes = st.builds(Mix, total=any_number, logs=any_number)


@settings(deadline=None, max_examples=500)
@given(visits, orders, mixes)
def test_nothing_raises_on_any_state(visits: Visits, orders: Orders, mix: Mix) -> None:
    state = CustomerState(visits=visits, orders=orders, mix=mix)
    known = named(state, 1.8e9)
    for name in NAMES:
        float(known[name])
    told = (*cluster_vector(state), *visit_vector(state, 1.8e9, "UTC"), entropy(state))
    assert all(map(math.isfinite, told)), told


@pytest.mark.parametrize("total", [1e308, -1e308, 1e12, -1e12])
def test_orders_of_any_size_are_looked_at_and_described(total: float) -> None:
    passing, held = Pass((), SendingSettings(), ShopSettings()), dict[str, bytes]()
    line = {"product_id": "p", "name": "n", "category": "k", "price": total, "quantity": total}
    for day in range(1, 9):
        said = {"order_id": str(day), "discount": total, "products": [line]} | ({"total": total} if day % 2 else {})
        body = {"type": "track", "event": "Order Completed", "userId": "c", "timestamp": f"2026-03-0{day}T12:00:00Z", "properties": said}
        event = decode(json.dumps(body).encode(), 2e9, 0, day)
        assert not isinstance(event, Dead), event
        held |= passing.run(held, [event], event.at, 2e9, 0).states
        held |= passing.fire(held, event.at + 80_000, 2e9, 0).states
    held |= passing.fire(held, 1.79e9, 2e9, 0).states
    assert all(map(math.isfinite, describe(held["c"], 1.79e9)["features"].values()))
