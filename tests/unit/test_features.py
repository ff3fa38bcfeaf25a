from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features import DAY, HALF_LIVES, apply, cluster_vector, named, visit_vector
from models.passes import Pass
from models.state import State, dump, load
from schemas.config import SendingSettings, ShopSettings, Trigger
from schemas.events import Event, Properties

START = 1.77e9


def event(at: float, kind: str = "Order Completed", offset: int = 0, total: float | None = None) -> Event:
    return Event("c", kind, at, f"m{offset}", Properties(total=total), None, 0, offset, kind)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 200)), min_size=1, max_size=30), st.integers(0, 90))
def test_decays_equal_a_naive_sum(orders: list[tuple[int, int]], later: int) -> None:
    state, at, seen = State(), START, list[tuple[float, float]]()
    for days, total in orders:
        at += days * DAY
        seen.append((at, float(total)))
        apply(state, event(at, total=float(total)), "UTC")
    now = at + later * DAY
    known = named(state, now)
    for name, half in zip(("visits_7d", "visits_30d", "visits_90d"), HALF_LIVES, strict=True):
        assert known[name] == pytest.approx(sum(2 ** (-(now - when) / DAY / half) for when, _ in seen), rel=1e-6)
    weights = [2 ** (-(at - when) / DAY / 90) for when, _ in seen]
    assert state.orders.value == pytest.approx(sum(w * total for w, (_, total) in zip(weights, seen, strict=True)), rel=1e-6, abs=1e-9)
    assert load(dump(state)) == state
    assert len(cluster_vector(state, now)) == 5
    assert all(abs(value) < 1e6 for value in visit_vector(state, now, "UTC"))


@given(st.integers(0, 90), st.integers(0, 90))
def test_a_coupon_in_the_basket_is_no_order_and_decays_like_one(first: int, second: int) -> None:
    state = State()
    apply(state, event(START), "UTC")
    apply(state, event(START + first * DAY, "Coupon Applied"), "UTC")
    assert named(state, START + first * DAY)["days_since_order"] == pytest.approx(first)
    apply(state, event(START + (first + second) * DAY), "UTC")
    assert state.orders.coupons == pytest.approx(2 ** (-second / 90))


def test_an_order_before_the_mail_is_not_credited_to_it() -> None:
    passing = Pass([Trigger(name="t", on="Order Completed", wait=DAY)], SendingSettings(), ShopSettings())
    states = passing.run({}, [event(START)], 0.0, 0.0, 0).states
    fired = passing.fire(states, START + 3 * DAY, 0.0, 0)
    assert len(fired.intents) == 1
    late = passing.run(fired.states, [event(START + 60, offset=1), event(START + 3 * DAY, offset=2)], 0.0, 0.0, 0)
    assert [told.kind for told in late.feedback] == ["ordered"]
