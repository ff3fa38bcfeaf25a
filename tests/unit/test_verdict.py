from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.verdict import Sample, State, drain_seconds, judge, lag_seconds, rates


def window(*pairs: tuple[int, int], start: int = 0) -> list[Sample]:
    return [Sample(float(n), committed, end, start) for n, (committed, end) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("samples", "members", "rebalancing", "expected"),
    [
        ([], 1, False, State.UNKNOWN),
        (window((5, 5)), 0, False, State.OK),
        (window((5, 9)), 1, False, State.UNKNOWN),
        (window((1, 5), (3, 7), (5, 8)), 1, False, State.OK),
        (window((1, 5), (2, 8), (3, 12)), 1, False, State.WARN),
        (window((1, 5), (1, 8), (1, 12)), 1, False, State.STALL),
        (window((1, 5), (1, 8), (1, 12)), 0, False, State.STOP),
        (window((1, 5), (1, 8), (1, 12)), 1, True, State.OK),
        (window((9, 10), (4, 10), (4, 10)), 1, False, State.REWIND),
        (window((3, 30), start=10), 1, False, State.DATA_LOSS),
        (window((5, 5), (5, 6), (5, 7)), 1, False, State.OK),  # it was level within the window
    ],
)
def test_states(samples: list[Sample], members: int, rebalancing: bool, expected: State) -> None:
    assert judge(samples, members, rebalancing) is expected


def test_rates_and_drain() -> None:
    samples = window((0, 100), (30, 110), (60, 120))
    assert rates(samples) == (10.0, 30.0)
    assert drain_seconds(samples) == pytest.approx(3.0)
    assert drain_seconds(window((0, 100), (10, 120))) is None
    assert drain_seconds(window((7, 7))) == 0.0


def test_seconds_come_from_the_record_else_between_two_looks_never_before_the_first() -> None:
    samples = [Sample(100.0, 0, 10), Sample(110.0, 15, 20)]
    assert lag_seconds(samples, 120.0, 95.0) == 25.0
    assert lag_seconds(samples, 120.0, None) == pytest.approx(15.0)
    assert lag_seconds([Sample(100.0, 0, 10), Sample(110.0, 5, 20)], 120.0, None) is None


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=20), st.integers(0, 3))
def test_never_negative_never_raises(pairs: list[tuple[int, int]], members: int) -> None:
    samples = window(*pairs)
    judge(samples, members)
    assert all(sample.lag >= 0 for sample in samples)
    for value in (drain_seconds(samples), lag_seconds(samples, 1e6, None)):
        assert value is None or value >= 0
