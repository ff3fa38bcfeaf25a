from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.groups import GRACE_MOST, SETTLING, Group, after
from monitoring.poll import INTERNAL
from monitoring.verdict import Sample, State, drain_seconds, judge, lag_seconds, rates


def window(*pairs: tuple[int, int], start: int = 0) -> list[Sample]:
    return [Sample(float(n), committed, end, start) for n, (committed, end) in enumerate(pairs)]


SLOW = window(*((1, 5 + n) for n in range(10)))
WOBBLE = window((1, 5), (2, 9), (3, 8), (4, 14), (5, 13), (6, 20))


@pytest.mark.parametrize(
    ("samples", "members", "rebalancing", "patience", "expected"),
    [
        pytest.param([], True, False, 0, State.UNKNOWN, id="nothing seen"),
        pytest.param(window((5, 5)), False, False, 0, State.OK, id="level, and nobody there: nothing is amiss"),
        pytest.param(window((5, 9)), True, False, 0, State.UNKNOWN, id="one look is no trend"),
        pytest.param(window((5, 9), (5, 9)), False, False, 0, State.UNKNOWN, id="nor are two"),
        pytest.param(window((1, 5), (3, 7), (5, 8)), True, False, 0, State.OK, id="it catches up"),
        pytest.param(window((1, 5), (2, 8), (3, 12)), True, False, 0, State.WARN, id="lag grows"),
        pytest.param(WOBBLE, True, False, 0, State.WARN, id="lag grows with a wobble"),
        pytest.param(WOBBLE, True, False, 60, State.OK, id="growth over too short a time"),
        pytest.param(window((1, 5), (1, 8), (1, 12)), True, False, 0, State.STALL, id="members and no progress"),
        pytest.param(SLOW, True, False, 9, State.STALL, id="no progress for the whole patience"),
        pytest.param(SLOW, True, False, 10, State.UNKNOWN, id="no progress, but not for long"),
        pytest.param(SLOW, False, False, 60, State.STOP, id="nobody reads: no patience needed"),
        pytest.param(window((1, 5), (1, 8), (1, 12)), True, True, 0, State.OK, id="grace while it rebalances"),
        pytest.param(window((1, 5), (2, 8), (3, 12)), True, True, 0, State.OK, id="grace for growth too"),
        pytest.param(window((9, 10), (4, 10), (4, 10)), True, False, 0, State.REWIND, id="went back"),
        pytest.param(window((9, 10), (4, 10), (4, 10)), True, True, 0, State.REWIND, id="no grace for going back"),
        pytest.param(window((9, 10), (4, 10), (10, 10)), True, False, 0, State.OK, id="went back and is level again"),
        pytest.param(window((3, 30), start=10), True, False, 0, State.DATA_LOSS, id="retention passed it"),
        pytest.param(window((3, 30), start=10), True, True, 60, State.DATA_LOSS, id="no grace for what is lost"),
        pytest.param(window((3, 30), start=3), True, False, 0, State.UNKNOWN, id="at the log's start nothing is lost"),
        pytest.param(window((30, 3)), True, False, 0, State.DATA_LOSS, id="past the end: another log, no false zero"),
        pytest.param(window((5, 5), (5, 6), (5, 7)), True, False, 0, State.OK, id="it was level within the window"),
    ],
)
def test_states(samples: list[Sample], members: bool, rebalancing: bool, patience: float, expected: State) -> None:
    assert judge(samples, members, rebalancing, patience) is expected


def test_lag_that_is_allowed_is_none() -> None:
    assert judge(window((1, 5), (1, 8), (1, 12)), True, allowed=11) is State.OK
    assert judge(window((1, 12), (1, 12), (1, 12)), True, allowed=10) is State.STALL


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
    assert lag_seconds([Sample(100.0, 10, 10)], 120.0, 95.0) == 0.0
    assert lag_seconds(samples, 120.0, 130.0) == 0.0  # a producer's clock that is ahead


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=20), st.booleans(), st.floats(0, 30))
def test_never_negative_never_raises(pairs: list[tuple[int, int]], members: bool, patience: float) -> None:
    samples = window(*pairs)
    judge(samples, members, patience=patience)
    assert all(sample.lag >= 0 for sample in samples)
    for value in (drain_seconds(samples), lag_seconds(samples, 1e6, None)):
        assert value is None or value >= 0


@pytest.mark.parametrize(
    ("topic", "internal"),
    [
        ("shop-orders-changelog", True),
        ("shop-__assignor-__leader", True),
        ("f-reply-9f2c", True),
        ("shop-orders-repartition", False),
        ("customer.events", False),
        ("changelog-of-prices", False),
    ],
)
def test_fausts_internal_topics_are_left_out_and_repartition_topics_kept(topic: str, internal: bool) -> None:
    assert bool(INTERNAL.search(topic)) is internal


def described(state: str, *members: str) -> dict[str, object]:
    return {"group_state": state, "members": [{"member_id": name, "member_assignment": f"of {name}"} for name in members]}


def test_a_rebalance_is_counted_once_and_has_grace_until_it_has_settled() -> None:
    group = after(None, "g", "", described("Stable", "a"), 0.0)
    assert (group.rebalances, group.members, group.inhabited, group.has_grace(0.0)) == (0, 1, True, False)
    for at, state in enumerate(("PreparingRebalance", "CompletingRebalance"), 1):
        group = after(group, "g", "", described(state, "a", "b"), float(at))
    assert (group.rebalances, group.has_grace(2.0)) == (1, True)
    group = after(group, "g", "", described("Stable", "a", "b"), 3.0)
    assert group.has_grace(3.0)
    group = after(group, "g", "", described("Stable", "a", "b"), 3.0 + SETTLING)
    assert (group.rebalances, group.has_grace(3.0 + SETTLING)) == (1, False)


def test_a_rebalance_between_two_looks_shows_in_who_holds_what() -> None:
    group = after(after(None, "g", "", described("Stable", "a"), 0.0), "g", "", described("Stable", "b"), 5.0)
    assert (group.rebalances, group.has_grace(5.0)) == (1, True)
    left = after(group, "g", "", described("Empty"), 5.0 + SETTLING)
    assert (left.rebalances, left.inhabited, left.has_grace(5.0 + SETTLING)) == (1, False, False)


def test_a_group_that_rebalances_on_and_on_loses_its_grace() -> None:
    group, at = after(None, "g", "", described("PreparingRebalance", "a"), 0.0), 0.0
    while at < GRACE_MOST:
        assert group.has_grace(at)
        at += 10.0
        group = after(group, "g", "", described("PreparingRebalance", "a"), at)
    assert not group.has_grace(at)


def test_a_group_of_the_newer_protocol_is_judged_by_its_listed_state() -> None:
    assert after(None, "g", "Stable", None, 0.0) == Group("g", "Stable", None)
    assert after(None, "g", "Stable", None, 0.0).inhabited
    assert not after(None, "g", "Empty", None, 0.0).inhabited
    assert after(None, "g", "Reconciling", None, 0.0).has_grace(1.0)
