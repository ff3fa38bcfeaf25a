"""Facts go into slots once, as one harmless line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.mail.slots import ALWAYS, EXAMPLES, MOVES, SLOTS, clean, fill, slots_in
from schemas.errors import PhrasebookError


def test_slots_are_found_in_order_with_repeats() -> None:
    assert slots_in("{product_1}, {price_1} and {product_1} {Not} {}") == ("product_1", "price_1", "product_1")


def test_a_value_is_not_filled_again() -> None:
    assert fill("Hi {first_name}, {offer}", {"first_name": "{offer}", "offer": "{first_name}"}) == "Hi {offer}, {first_name}"


def test_a_missing_fact_is_an_error_that_names_the_slot() -> None:
    with pytest.raises(PhrasebookError, match=r"\{price_1\}"):
        fill("{product_1} costs {price_1}", {"product_1": "Rice"})
    with pytest.raises(PhrasebookError, match=r"\{first_name\}"):
        fill("Hi {first_name}", {"first_name": "\u202e\n"})


def test_html_escapes_values_and_not_the_text() -> None:
    assert fill("<b>{product_1}</b>", {"product_1": "Salt & <Pepper>"}, html=True) == "<b>Salt &amp; &lt;Pepper&gt;</b>"


def test_a_value_cannot_break_out_of_its_line() -> None:
    assert clean("Eve\r\nBcc: all@example.com\u2028x\u202e\u200b\x00") == "Eve Bcc: all@example.com x"
    assert clean("  José   María ") == "José María"


@given(st.text(max_size=80))
def test_cleaned_values_are_one_line_and_stay_as_they_are(value: str) -> None:
    once = clean(value)
    assert once == clean(once)
    assert len(once.splitlines()) <= 1


@given(st.dictionaries(st.sampled_from(sorted(SLOTS)), st.text(min_size=1, max_size=20)))
def test_filling_replaces_every_slot_or_refuses(values: dict[str, str]) -> None:
    text = " | ".join(f"<{{{name}}}>" for name in values)
    if all(clean(value) for value in values.values()):
        assert fill(text, values) == " | ".join(f"<{clean(value)}>" for value in values.values())
    else:
        with pytest.raises(PhrasebookError):
            fill(text, values)


def test_the_registry_is_whole() -> None:
    assert {"first_name", "shop_name", "agent_name", "cta_link"} == ALWAYS
    assert all(slot.moves and set(slot.moves) <= set(MOVES) and EXAMPLES[name] for name, slot in SLOTS.items())
