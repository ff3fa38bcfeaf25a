"""The hazard behaves as a chance, and the window stays shut where there is no rhythm."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.learning.replenishment import decayed, exposure, hazard, in_window

counts = st.floats(0, 1e4)
days = st.floats(0, 1e4)


@given(counts, days, st.floats(0.1, 1e4), st.floats(0.1, 60))
def test_a_hazard_is_a_chance_and_grows_with_count_and_horizon(count: float, exposed: float, prior: float, ahead: float) -> None:
    chance = hazard(count, exposed, prior, ahead)
    assert 0.0 <= chance <= 1.0
    assert hazard(count + 1, exposed, prior, ahead) >= chance
    assert hazard(count, exposed, prior, ahead + 1) >= chance


def test_the_closed_form() -> None:
    assert hazard(3.0, 60.0, 20.0) == pytest.approx(1 - math.exp(-7 * 3.5 / 70.0))


def test_without_evidence_the_prior_speaks() -> None:
    assert hazard(0.0, 0.0, 14.0) == pytest.approx(1 - math.exp(-0.5))


@given(days, days)
def test_exposure_grows_to_its_limit(one: float, more: float) -> None:
    assert exposure(one) <= exposure(one + more) <= 90 / math.log(2)


def test_a_count_halves_in_ninety_days() -> None:
    assert decayed(8.0, 90.0) == 4.0
    assert decayed(8.0, -1.0) == 8.0


@pytest.mark.parametrize(
    ("cv", "ratio", "gaps", "open_"),
    [
        (0.3, 1.0, 5, True),
        (0.449, 0.75, 9, True),
        (0.3, 1.5, 5, True),
        (0.45, 1.0, 5, False),
        (0.3, 0.74, 5, False),
        (0.3, 1.51, 5, False),
        (0.3, 2.5, 50, False),
        (0.3, 1.0, 4, False),
        (math.nan, 1.0, 9, False),
    ],
)
def test_the_window(cv: float, ratio: float, gaps: int, open_: bool) -> None:
    assert in_window(cv, ratio, gaps) is open_
