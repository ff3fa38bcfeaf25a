"""What the replayed sources yield: the same events each time, in time order, within the limits, with names fit for an email."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailtide.replay import publish
from mailtide.replay.sources import cdnow, complete_journey
from mailtide.replay.sources.dated import Dated
from mailtide.replay.sources.names import FIRST_NAMES, draw, first_name, product_name, readable
from mailtide.replay.sources.opening import open_source
from schemas.errors import SourceError
from schemas.events import Event, decode

CLEAN = re.compile(r"[^\d/()&#%$:]*")
CDNOW = (
    " 00004 0001 19970101  2   29.33\n 00004 0001 19970118  2   29.73\n 00018 0002 19970104  1    0.00\n 00021 0003 19970102  1   10.00\n"
)


@pytest.fixture(scope="module")
def journey() -> list[Dated]:
    return list(open_source("complete-journey", 45, 40).events)


def kinds(events: list[Dated], name: str) -> list[Dated]:
    return [dated for dated in events if dated.event.get("event", dated.event["type"]) == name]


def in_order(events: list[Dated]) -> bool:
    return all(earlier.at <= later.at for earlier, later in pairwise(events))


def test_journey_is_the_same_each_time_and_in_order(journey: list[Dated]) -> None:
    assert journey == list(open_source("complete-journey", 45, 40).events)
    assert in_order(journey)
    ids = [dated.event["messageId"] for dated in journey]
    assert len(set(ids)) == len(ids)


def test_journey_keeps_its_limits(journey: list[Dated]) -> None:
    assert len({dated.customer for dated in journey}) == 40
    days = {datetime.fromtimestamp(dated.at, complete_journey.ZONE).date() for dated in journey}
    assert min(days) == datetime(2017, 1, 1).date()
    assert max(days) <= datetime(2017, 2, 14).date()


def test_journey_is_read_as_the_shop_sent_it(journey: list[Dated]) -> None:
    for dated in journey:
        read = decode(msgspec.json.encode(dated.event), dated.at)
        assert isinstance(read, Event)
        assert (read.customer, read.at) == (dated.customer, dated.at)
    for dated in kinds(journey, "Order Completed"):
        properties = dated.event["properties"]
        assert properties["total"] >= 0
        assert properties["order_id"]
        for product in properties["products"]:
            assert CLEAN.fullmatch(product["name"])
            assert CLEAN.fullmatch(product["category"])
            assert product["quantity"] >= 1
            assert product.get("price", 1) > 0


def test_each_household_is_identified_before_its_first_order(journey: list[Dated]) -> None:
    met: set[str] = set()
    for dated in journey:
        if dated.event["type"] == "identify":
            traits = dated.event["traits"]
            assert traits["email"] == f"{dated.customer}@example.com"
            assert traits["firstName"] in FIRST_NAMES
            met.add(dated.customer)
        assert dated.customer in met
    assert len(kinds(journey, "identify")) == len(met)


def test_coupons_come_before_the_order_that_used_them() -> None:
    year = list(open_source("complete-journey", None, 150).events)
    orders = {dated.event["properties"]["order_id"]: dated for dated in kinds(year, "Order Completed")}
    applied = kinds(year, "Coupon Applied")
    assert applied
    for dated in applied:
        order = orders[dated.event["properties"]["order_id"]]
        assert dated.at <= order.at
        assert order.event["properties"]["coupon"].startswith("C")
    left = kinds(year, "Unsubscribed")
    assert 0 < len(left) < 150 * 0.1
    assert in_order(year)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_becomes_a_clean_name(text: str, category: str) -> None:
    name = readable(text, category)
    assert CLEAN.fullmatch(name)
    assert len(name.split()) <= 8
    assert name == name.strip()
    assert not name or name[0] == name[0].upper()


@pytest.mark.parametrize(
    ("text", "category", "name"),
    [
        ("SOFT DRINKS 12/18&15PK CAN CAR", "SOFT DRINKS", "Soft drinks"),
        ("PREMIUM", "ICE CREAM/MILK/SHERBTS", "Premium ice cream"),
        ("BREAD:ITALIAN/FRENCH", "BREAD", "Italian bread"),
        ("EGGS - LARGE", "EGGS", "Large eggs"),
        ("MEAT: TURKEY BULK", "DELI MEATS", "Turkey"),
        ("APPLES GRANNY SMITH (BULK&BAG)", "APPLES", "Granny smith apples"),
        ("CANNED CAT FOOD (9 LIVES/FRISK", "CAT FOOD", "Canned cat food"),
        ("BEANS GREEN: FS/WHL/CUT", "VEGETABLES - SHELF STABLE", "Green beans"),
        ("", "", ""),
    ],
)
def test_till_texts_read_like_a_shop(text: str, category: str, name: str) -> None:
    assert readable(text, category) == name


def test_the_shops_own_brand_is_named() -> None:
    assert product_name("BUTTER", "BUTTER", "Private") == "Own-brand butter"
    assert product_name("BUTTER", "BUTTER", "National") == "Butter"
    assert product_name("", "", "Private") == ""


@given(st.text(max_size=20))
def test_draws_depend_on_their_parts_alone(customer: str) -> None:
    assert 0 <= draw("consent", customer) < 1
    assert draw("consent", customer) == draw("consent", customer)
    assert first_name(customer) in FIRST_NAMES


def test_cdnow_days_and_customers() -> None:
    purchases = cdnow.parse(CDNOW)
    events = list(cdnow.dated(purchases))
    assert in_order(events)
    assert len(kinds(events, "Order Completed")) == 4
    assert len(kinds(events, "identify")) == 3
    assert len({dated.customer for dated in cdnow.dated(purchases, customers=2)}) == 2
    first = list(cdnow.dated(purchases, days=1))
    assert {dated.customer for dated in first} == {"cdnow-4"}
    assert first == [dated for dated in events if dated.at <= first[-1].at]


def test_cdnow_says_in_one_line_that_it_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILTIDE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no network\n")
    )
    with pytest.raises(SourceError, match=r"^cdnow: .*no network.*$"):
        next(open_source("cdnow").events)


def line(customer: str, at: str, **more: object) -> str:
    return json.dumps({"type": "track", "event": "Product Viewed", "userId": customer, "timestamp": at, **more})


def test_a_file_is_put_in_time_order(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    rows = [line("b", "2026-01-02T00:00:00Z"), "", line("a", "2026-01-01T10:00:00Z", n=1), line("c", "2026-01-01T10:00:00Z", n=2)]
    file.write_text("\n".join(rows))
    assert [dated.customer for dated in open_source(str(file)).events] == ["a", "c", "b"]
    assert [dated.customer for dated in open_source(str(file), days=1).events] == ["a", "c"]
    assert len(list(open_source(str(file), customers=2).events)) == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "line 2: not_json"),
        ("[]", "line 2: not_an_event"),
        ('{"type": "track", "event": "x", "timestamp": "2026-01-01T00:00:00Z"}', "line 2: no_customer"),
        (line("a", "yesterday"), "line 2: bad_time"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_yielded(tmp_path: Path, bad: str, said: str) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(line("a", "2026-01-01T10:00:00Z") + "\n" + bad + "\n")
    with pytest.raises(SourceError, match=said) as raised:
        next(open_source(str(file)).events)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no source"):
        open_source("dunnhumby")
    with pytest.raises(SourceError, match="can't be read"):
        next(open_source(str(tmp_path / "none.jsonl")).events)


def test_a_day_begins_and_ends_at_midnight_of_its_zone_when_the_clocks_change() -> None:
    start, end = publish._day(datetime(2017, 3, 12, 12, tzinfo=complete_journey.ZONE).timestamp(), complete_journey.ZONE)
    assert end - start == 23 * 3600
    assert datetime.fromtimestamp(start, complete_journey.ZONE).isoformat() == "2017-03-12T00:00:00-05:00"


def test_speed_is_event_seconds_per_second() -> None:
    pace = publish._Pace(100.0)
    assert pace.wait(1000.0) == pytest.approx(0.0, abs=0.05)
    assert pace.wait(2000.0) == pytest.approx(10.0, abs=0.05)
    assert publish._Pace(None).wait(5.0) == 0.0
