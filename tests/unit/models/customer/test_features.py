from __future__ import annotations

import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.customer import recent
from models.customer.features import DAY, apply, ever_bought
from models.customer.known import cluster_vector, entropy, named, visit_vector
from models.customer.local_time import Quiet, local, local_day
from models.customer.recent import repeated
from models.customer.state import GRID, KEPT_CATEGORIES, MOST_CATEGORIES, RECENT, Category, CustomerState, dump, load
from models.mail.gate import quiet_until
from models.triggers.passes import Pass
from schemas.config import SendingSettings, ShopSettings, Trigger
from schemas.errors import SettingsError, StoreError
from schemas.events import Event, Item, Properties

START = 1.77e9


def event(at: float, kind: str = "Order Completed", offset: int = 0, total: float | None = None) -> Event:
    return Event("c", kind, at, f"m{offset}", Properties(total=total), None, 0, offset, kind)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 200)), min_size=1, max_size=30), st.integers(0, 90))
def test_decays_equal_a_naive_sum(orders: list[tuple[int, int]], later: int) -> None:
    state, at, seen = CustomerState(), START, list[tuple[float, float]]()
    for days, total in orders:
        at += days * DAY
        seen.append((at, float(total)))
        apply(state, event(at, total=float(total)), "UTC")
    now = at + later * DAY
    known = named(state, now)
    for name, half in (("visits_7d", 7.0), ("visits_30d", 30.0), ("visits_90d", 90.0)):
        assert known[name] == pytest.approx(sum(2 ** (-(now - when) / DAY / half) for when, _ in seen), rel=1e-6)
    weights = [2 ** (-(at - when) / DAY / 90) for when, _ in seen]
    assert state.orders.value == pytest.approx(sum(w * total for w, (_, total) in zip(weights, seen, strict=True)), rel=1e-6, abs=1e-9)
    assert load(dump(state)) == state
    assert len(cluster_vector(state)) == 5
    assert all(abs(value) < 1e6 for value in visit_vector(state, now, "UTC"))


def order(at: float, *kinds: str, coupon: str = "") -> Event:
    said = Properties(products=[Item(f"p-{kind}", name=kind, category=kind, price=2.0) for kind in kinds], coupon=coupon)
    return Event("c", "Order Completed", at, "", said, None, 0, 0, "Order Completed")


@given(st.integers(0, 90), st.integers(0, 90), st.booleans(), st.integers(1, 3))
def test_a_coupon_counts_once_and_with_its_order(first: int, second: int, named_again: bool, times: int) -> None:
    state = CustomerState()
    apply(state, event(START), "UTC")
    for _ in range(times):
        apply(state, event(START + first * DAY, "Coupon Applied"), "UTC")
    assert named(state, START + first * DAY)["days_since_order"] == pytest.approx(first), "a coupon in the basket is no order yet"
    assert state.orders.coupons == 0
    apply(state, order(START + (first + 1) * DAY, coupon="SAVE5" if named_again else ""), "UTC")
    assert state.orders.coupons == 1
    apply(state, order(START + (first + 1 + second) * DAY), "UTC")
    assert state.orders.coupons == pytest.approx(2 ** (-second / 90))


kinds = st.lists(st.integers(0, MOST_CATEGORIES + 20).map("kind {}".format), min_size=1, max_size=12)


@given(st.lists(st.tuples(st.floats(-2, 60), kinds), min_size=1, max_size=30))
def test_the_mix_of_goods_equals_a_sum_over_all_that_is_remembered(orders: list[tuple[float, list[str]]]) -> None:
    state, at, bought = CustomerState(), START, set[str]()
    for days, names in orders:
        at += days * DAY
        apply(state, order(at, *names), "UTC")
        bought |= set(names)
        state = load(dump(state))
    found = {name: Category.of(row) for name, row in state.categories.items()}
    assert len(found) <= MOST_CATEGORIES
    assert len(found) >= min(len(bought), KEPT_CATEGORIES)
    assert all(ever_bought(state, name) for name in bought)
    weights = [kind.buys / GRID * 2 ** ((kind.last - at) / DAY / 90) for kind in found.values()]
    shares = [weight / sum(weights) for weight in weights]
    assert entropy(state) == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-6)


def test_what_was_bought_and_forgotten_is_never_taken_for_new() -> None:
    state = CustomerState()
    for n in range(150):
        apply(state, order(START + n * DAY, f"kind {n}"), "UTC")
    assert all(ever_bought(state, f"kind {n}") for n in range(150))
    wrong = sum(ever_bought(state, f"never {n}") for n in range(1000))
    assert wrong < 250


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 4 * 3600)), max_size=200))
def test_message_ids_are_known_for_64_events_and_a_day(said: list[tuple[int, float]]) -> None:
    state, seen, at = CustomerState(), list[tuple[str, float]](), START
    for number, later in said:
        at += later
        name = f"m-{number}"
        state.newest = at
        must = any(known == name for known, _ in seen[-RECENT:]) or any(known == name and when >= at - DAY for known, when in seen)
        again = repeated(state, name, at)
        assert again or not must
        if not again:
            seen.append((name, at))
    assert len(state.ids) == len(state.ids_at) * 2


def test_old_message_ids_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    state = CustomerState()
    for n in range(300):
        state.newest = START + n * DAY
        assert not repeated(state, f"m-{n}", START + n * DAY)
    assert len(state.ids) == RECENT * 8
    monkeypatch.setattr(recent, "RECENT_MOST", 100)
    for n in range(300):
        assert not repeated(state, f"wild-{n}", state.newest)
    assert len(state.ids) == 100 * 8


zones = st.sampled_from(
    ["America/New_York", "Asia/Kathmandu", "Europe/Dublin", "Pacific/Chatham", "Australia/Lord_Howe", "UTC", "", "no/zone"]
)


@given(st.floats(1e9, 2e9), zones)
def test_local_time_equals_the_standard_librarys(at: float, name: str) -> None:
    place = ZoneInfo("Europe/Dublin") if name in ("", "no/zone") else ZoneInfo(name)
    clock = datetime.fromtimestamp(at, place)
    assert local_day(at, name, "Europe/Dublin") == clock.toordinal() - datetime(1970, 1, 1, tzinfo=UTC).toordinal()
    assert local(at, name, "Europe/Dublin") % DAY == pytest.approx(
        clock.hour * 3600 + clock.minute * 60 + clock.second + clock.microsecond / 1e6, abs=1e-3
    )


@given(st.floats(1e9, 2e9), zones, st.sampled_from([("21:00", "08:00"), ("01:30", "06:15"), ("08:00", "08:00"), ("00:00", "23:59")]))
def test_quiet_hours_equal_the_gates(at: float, name: str, hours: tuple[str, str]) -> None:
    expected = quiet_until(at, name, "Europe/Dublin", *hours) or at
    assert Quiet(*hours, "Europe/Dublin").awake(at, name) == expected


@pytest.mark.parametrize(("hours", "said"), [(("9pm", "08:00"), "sending.quiet_start"), (("21:00", "25:00"), "sending.quiet_end")])
def test_quiet_hours_that_are_none_are_a_setting_to_mend(hours: tuple[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Quiet(*hours, "UTC")


def test_a_state_of_another_version_is_one_line_with_its_mend() -> None:
    with pytest.raises(StoreError, match="not of version"):
        load(b"\xdc\x00\x11\x07" + dump(CustomerState())[4:])


def test_an_order_before_the_mail_is_not_credited_to_it() -> None:
    passing = Pass([Trigger(name="t", on="Order Completed", wait=DAY)], SendingSettings(), ShopSettings())
    states = passing.run({}, [event(START)], 0.0, 0.0, 0).states
    fired = passing.fire(states, START + 3 * DAY, 0.0, 0)
    assert len(fired.intents) == 1
    late = passing.run(fired.states, [event(START + 60, offset=1), event(START + 3 * DAY, offset=2)], 0.0, 0.0, 0)
    assert [told.kind for told in late.feedback] == ["ordered"]
