"""What the learners make of their records: nothing twice, and nothing of those who objected."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.learning import Basket, Forgotten, Vector, Visit
from schemas.mail import encode, iso
from streams.clusters.stage import KNOWN, Learners

T = 1_700_000_000.0


class Record(NamedTuple):
    offset: int
    value: bytes


def learned(values: list[bytes]) -> Learners:
    made = Learners()
    for offset, value in enumerate(values):
        made.learn(Record(offset, value))
    return made


def records(count: int, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    made = []
    for n in range(count):
        customer, at = f"u{n % 40}", iso(T + n)
        made += [
            encode(Vector(customer, tuple(draw.gauss(m, 0.2) for m in (1.8, 3.5, 2.0, 0.4, 0.2)), at)),
            encode(Visit(customer, (draw.gauss(0, 1), 1.0), (True, True, True), at)),
            encode(Basket(customer, ("milk",), (), {"milk": ("m1",)}, at, T)),
        ]
    return made


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(0, 90), st.integers(0, 90))
def test_what_intake_writes_again_after_a_crash_is_learned_once(seed: int, first: int, length: int) -> None:
    once = records(30, seed)
    again = once[:first] + once[max(0, first - length) : first] + once[first:]
    one, two = learned(once), learned(again)
    assert two.offset == len(again)
    assert [getattr(two, name).to_bytes() for name in ("clusters", "rhythm", "items")] == [
        getattr(one, name).to_bytes() for name in ("clusters", "rhythm", "items")
    ]


def test_a_restart_knows_the_newest_records_again() -> None:
    values = records(30, 1)
    made = Learners.load(learned(values).dump())
    before = made.rhythm.seen
    for value in values[-20:]:
        made.learn(Record(made.offset, value))
    assert made.rhythm.seen == before
    assert len(made.known) <= KNOWN


def test_whoever_objects_is_out_of_the_sample() -> None:
    made = learned(records(60, 2))
    assert "u7" in made.clusters.state.sample
    made.learn(Record(made.offset, encode(Forgotten("u7", iso(T)))))
    assert "u7" not in made.clusters.state.sample
    assert "u8" in made.clusters.state.sample
