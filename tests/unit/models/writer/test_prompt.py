"""The prompt holds what words may depend on, and nothing that names a person or a number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.mail.slots import ALWAYS, SLOTS
from models.phrasebook.book import GOODS, SITUATIONS, TONES, Book
from models.writer.prompt import Prompt, narrow, prompt_of, render, slots_of
from schemas.mail import Facts, Intent, Product, Source


def intent(customer: str = "ann", name: str = "Harbour Blend", price: float | None = 7.49) -> Intent:
    facts = Facts(
        products=(Product("p1", name, "coffee", price, "USD", "coffee_tea"), Product("p2", "Oat Biscuits")),
        values={"coupon_code": "SAVE5", "offer": "5% off", "order_date": ""},
        situation=("regular", "coupon_user"),
    )
    due = "2026-01-01T00:00:00.000Z"
    return Intent(f"i-{customer}", customer, "replenishment", "x", due, due, "c1", facts, Source("t", 0, 0), due, tone="crisp")


def test_slots_are_those_that_facts_can_fill() -> None:
    assert slots_of(intent().facts) == ("category", "coupon_code", "offer", "price_1", "product_1", "product_2")
    assert "price_1" not in slots_of(intent(price=None).facts)


def test_customers_share_a_prompt_and_nothing_personal_or_numeric_is_in_it() -> None:
    one, other = (
        render(prompt_of(intent("ann"), "big baskets every 6 days")),
        render(prompt_of(intent("bob", "Dark Roast", 3.2), "big baskets")),
    )
    assert one == other
    for secret in ("ann", "bob", "Harbour", "Dark", "7.49", "SAVE5", "5%", "i-"):
        assert secret not in one
    assert one == ("Trigger: replenishment, crisp\nCustomer: big baskets\nGoods: coffee tea\nSituation: coupon user, regular\n\n")


def test_defaults_where_little_is_known() -> None:
    bare = Intent("i", "c", "welcome", "x", "d", "e", "c0", Facts(), Source("t", 0, 0), "f")
    prompt = prompt_of(bare)
    assert (prompt.tone, prompt.goods, prompt.slots) == ("warm", "general", ())
    assert render(prompt).endswith("Customer: not known yet\nGoods: general\nSituation: none\n\n")


BOOK = Book.load()


@given(
    trigger=st.sampled_from(BOOK.triggers),
    tone=st.sampled_from(TONES),
    goods=st.sampled_from(GOODS),
    situation=st.sets(st.sampled_from(SITUATIONS)),
    slots=st.sets(st.sampled_from(sorted(set(SLOTS) - ALWAYS))),
)
def test_narrowing_loses_no_clause_and_is_done_at_once(trigger: str, tone: str, goods: str, situation: set[str], slots: set[str]) -> None:
    whole = Prompt(trigger, tone, "en", "big baskets", goods, tuple(sorted(situation)), tuple(sorted(slots)))
    less = narrow(whole, BOOK)

    def open_to(prompt: Prompt) -> list[str]:
        have = frozenset(prompt.slots) | ALWAYS
        return [c.id for c in BOOK.chapters[trigger].clauses if c.fits(tone, have, prompt.goods, prompt.situation)]

    assert open_to(less) == open_to(whole)
    assert narrow(less, BOOK) == less
    assert set(less.situation) <= situation and set(less.slots) <= slots


def test_contexts_that_no_clause_tells_apart_are_one() -> None:
    book = Book.load()
    whole = Prompt("welcome", "warm", "en", "", "electronics", ("many_items", "regular"), ("ticket_id",))
    assert narrow(whole, book) == Prompt("welcome", "warm", "en", "", "general", (), ())
