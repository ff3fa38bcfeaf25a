"""The slots that facts fill: what each is, where its value comes from, where it may stand.

Words stand around slots; no number, name, price, date, code or link is ever
written by hand or by a model. A value is put in once and never read again, so
a customer who calls herself ``{coupon_code}`` gets exactly that.
"""

from __future__ import annotations

import html as _html
import re
import unicodedata
from collections.abc import Mapping
from typing import Literal

import msgspec

from schemas.errors import PhrasebookError

Source = Literal["profile", "fact", "config"]
MOVES: tuple[str, ...] = ("subject", "preheader", "greeting", "reason", "body", "offer", "reassurance", "cta")
PARAGRAPH: tuple[str, ...] = ("reason", "body", "offer", "reassurance")

_SLOT = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_HEAD_AND_TEXT = ("subject", "preheader", "reason", "body", "offer")


class Slot(msgspec.Struct, frozen=True):
    """One slot. ``example`` is a typical value, for samples and for measuring lengths; ``always``: every mail has it."""

    name: str
    role: str
    source: Source
    moves: tuple[str, ...]
    example: str
    always: bool = False


_ALL = (
    Slot("first_name", 'the customer\'s first name, "there" where it is not known', "profile", ("greeting",), "Maria", always=True),
    Slot("shop_name", "the shop", "config", (*_HEAD_AND_TEXT, "reassurance"), "Tidewater Market", always=True),
    Slot("agent_name", "who signs care mails", "config", ("preheader", *PARAGRAPH), "Robin", always=True),
    Slot("cta_link", "the button's target", "config", ("cta",), "https://tidewater.example.com", always=True),
    Slot("product_1", "the product that the mail is about", "fact", _HEAD_AND_TEXT, "Harbour Blend Coffee"),
    Slot("product_2", "a second product", "fact", _HEAD_AND_TEXT, "Oat Biscuits"),
    Slot("product_3", "a third product", "fact", _HEAD_AND_TEXT, "Wildflower Honey"),
    Slot("price_1", "price of product_1", "fact", _HEAD_AND_TEXT, "$7.49"),
    Slot("price_2", "price of product_2", "fact", _HEAD_AND_TEXT, "$3.20"),
    Slot("price_3", "price of product_3", "fact", _HEAD_AND_TEXT, "$5.75"),
    Slot("old_price_1", "price of product_1 before", "fact", _HEAD_AND_TEXT, "$8.99"),
    Slot("category", "the kind of goods, as the shop names it", "fact", _HEAD_AND_TEXT, "coffee"),
    Slot("order_id", "the order's number", "fact", (*_HEAD_AND_TEXT, "reassurance"), "A-20418"),
    Slot("order_date", "the day of the order", "fact", (*_HEAD_AND_TEXT, "reassurance"), "3 March"),
    Slot("coupon_code", "the code to enter", "fact", ("preheader", "offer"), "SAVE10"),
    Slot("offer", "what the code or the occasion is worth, as a noun phrase", "fact", ("subject", "offer"), "10% off"),
    Slot("ticket_id", "the care case's number", "fact", (*_HEAD_AND_TEXT, "reassurance"), "T-3317"),
)
SLOTS: dict[str, Slot] = {slot.name: slot for slot in _ALL}
ALWAYS: frozenset[str] = frozenset(slot.name for slot in _ALL if slot.always)
EXAMPLES: dict[str, str] = {slot.name: slot.example for slot in _ALL}


def slots_in(text: str) -> tuple[str, ...]:
    """Names of the slots in the order they stand, repeats included."""
    return tuple(_SLOT.findall(text))


def fill(text: str, values: Mapping[str, str], html: bool = False) -> str:
    """Put the facts in, in one pass; ``html`` escapes the values (not the text).

    Raises PhrasebookError when a slot has no value: a mail with a hole is never made.
    """
    missing = sorted({name for name in slots_in(text) if not clean(values.get(name, ""))})
    if missing:
        raise PhrasebookError(f"no fact for slot {{{missing[0]}}} in {text[:40]!r}…: take a clause without it, or supply the fact")

    def value(match: re.Match[str]) -> str:
        fact = clean(values[match.group(1)])
        return _html.escape(fact) if html else fact

    return _SLOT.sub(value, text)


def clean(value: str) -> str:
    """A value as one harmless line: no line breaks, controls, bidi overrides or zero-width marks; spaces run together."""
    # Cc: controls and line breaks, Cf: bidi and zero-width marks, Zl/Zp: line and paragraph separators, Cs/Co/Cn: no characters.
    spaced = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp", "Zs"} else c for c in value)
    return " ".join("".join(c for c in spaced if unicodedata.category(c)[0] != "C").split())
