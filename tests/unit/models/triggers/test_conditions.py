from __future__ import annotations

import pytest

from models.triggers.conditions import compile_condition
from schemas.errors import SettingsError

NAMES = {"orders", "coupon"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("orders >= 2 and coupon != ''", True),
        ("1 < orders < 3", True),
        ("not orders == 2", False),
        ("orders / 0 > 1", False),
        ("orders * 2 - 1 == 3 or coupon == 'x'", True),
        ("orders < 'x'", False),
    ],
)
def test_a_condition_means_what_it_says(text: str, expected: bool) -> None:
    assert compile_condition(text, NAMES, "here")({"orders": 2, "coupon": "SAVE"}) is expected


@pytest.mark.parametrize(
    "text", ["orders\x00", "not " * 3000 + "orders", "orders >", "orders.real > 1", "(lambda: 1)()", "[1]", "orders ** 9"]
)
def test_what_may_not_stand_in_a_condition_is_refused_as_a_setting(text: str) -> None:
    with pytest.raises(SettingsError, match="here"):
        compile_condition(text, NAMES, "here")


def test_an_unknown_name_comes_with_its_column_and_the_nearest_known() -> None:
    with pytest.raises(SettingsError, match=r"column 12: 'ordrs' is not known; did you mean 'orders'"):
        compile_condition("coupon and ordrs", NAMES, "here")
