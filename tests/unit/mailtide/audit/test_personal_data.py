from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailtide.audit.personal_data import _addresses, personal, written
from models.customer.state import CustomerState, Pending, Timer, dump, pack
from schemas.mail import Facts


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (b"c-1", b'{"a":"maria@customers.example.com"}', "an email address"),
        (b"c-1", b"\x92\xa0maria@customers.example.com\x00", "an email address"),
        (b"maria@customers.example.com", b'{"customer":"maria@customers.example.com"}', ""),
        (b"c0", b'{"customer":"maria@customers.example.com","text":"Hi"}', ""),
        (b"c0", b'{"customer":"maria@customers.example.com","text":"from joan@customers.example.com"}', "an email address"),
        (b"c-1", b'{"message_id":"<' + b"0a" * 16 + b'@shop.example.com>"}', ""),
        (b"c-1", b'{"traits":{"birthday": "1990-01-01"}}', "a profile's field"),
        (b"c-1", b'{"text":"Hi {first_name}, see {cta_link}","slots":["first_name"]}', ""),
        (b"c-1", b"", ""),
    ],
)
def test_personal_data(key: bytes, value: bytes, says: str) -> None:
    assert personal(key, value) == says


def _state(pending: tuple[float, ...] = (), told: str = "") -> bytes:
    state = CustomerState(counts={"Order Completed": 2})
    if pending:
        state.pending = [Pending.of(0.0, pending)]
    if told:
        state.timers = [Timer(1.0, "welcome", "o-1", 0.0, pack(Facts(values={"order_id": told})))]
    return dump(state)


def test_numbers_that_look_like_an_address_are_none() -> None:
    state = _state(struct.unpack("<6e", b"o.f@o.fAo.f@"))
    assert personal(b"c-1", state) == "an email address"  # what a search of the bare bytes would say
    assert personal(b"c-1", written(state)) == ""


def test_an_address_packed_within_a_state_is_found() -> None:
    assert personal(b"c-1", written(_state(told="maria@customers.example.com"))) == "an email address"
    assert personal(b"c-1", written(b"\xc1 no MessagePack: maria@customers.example.com")) == "an email address"


@given(st.binary())
def test_any_bytes_are_looked_into(value: bytes) -> None:
    assert personal(b"c-1", written(value)) in ("", "an email address", "a profile's field")


def test_a_partition_s_own_record_is_no_state_and_no_mistake() -> None:
    clock = b"\xab\x11\0\0\0\0\0\0\0\0@\xcd\n\x89\xd9A"
    assert written(clock) == clock


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=12))
def test_no_numbers_are_an_address(values: list[float]) -> None:
    assert personal(b"c-1", written(_state(tuple(values)))) == ""


@settings(max_examples=2000)
@given(
    st.lists(st.sampled_from([b"a", b"b-", b".", b"@", b"+", b"a@b.c", b" ", b"\xff"]), max_size=24).map(b"".join) | st.binary(max_size=40)
)
def test_what_looks_like_an_address_is_what_its_pattern_says(value: bytes) -> None:
    pattern = rb"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"  # as it is meant; it takes a text's length squared
    assert list(_addresses(value)) == re.findall(pattern, value)


@pytest.mark.parametrize("piece", [b"a", b"a.", b"@", b"a@", b"a@b ", b"@b.c", b"@b.", b"a@b.c "])
def test_a_text_of_megabytes_is_looked_through(piece: bytes) -> None:
    """With more than a fixed number of looks at each byte this takes hours, not longer."""
    value = piece * ((4 << 20) // len(piece))
    found = set(_addresses(value)) | set(_addresses(value[1:])) | set(_addresses(b"x" + value + b"@b.c"))
    assert all(address.count(b"@") == 1 for address in found)
    assert personal(b"", value) == ("an email address" if list(_addresses(value)) else "")


def test_a_customers_own_id_is_looked_for_once_however_often_it_stands_there() -> None:
    assert personal(b"", b"a@b.c " * 700_000 + b'"customer":"a@b.c"') == ""
