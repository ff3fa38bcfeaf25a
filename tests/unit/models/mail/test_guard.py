"""What no mail may say is refused; what a mail should say passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.mail.guard import check, check_words, passes
from models.mail.slots import SLOTS

GOOD = """Subject: A word about {product_1}
Preheader: In good time, and without any fuss.

Hi {first_name},

Going by when you usually shop for it, one of your regular things may be running low. A quick look at the shelf will tell you. \
If you still have plenty, simply let this one pass.

Order again: {cta_link}"""
ALL = frozenset(SLOTS)


def verdicts(old: str, new: str, slots: frozenset[str] = ALL, trigger: str = "") -> dict[str, str]:
    assert old in GOOD
    return check(GOOD.replace(old, new), slots, trigger)


def test_a_good_mail_passes_every_rule() -> None:
    assert check(GOOD, ALL) == dict.fromkeys(check(GOOD, ALL), "ok")
    assert passes(check(GOOD, ALL))


def test_no_verdicts_are_no_pass() -> None:
    assert not passes({})
    assert not passes({"form": "ok", "claims": "free"})


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("It costs 5 less.", "digits"),
        ("It costs five less.", "digits"),
        ("It holds ½ more.", "digits"),
        ("It takes twenty-five of them.", "digits"),
        ("Save some dollars.", "money"),
        ("Yours for £ and change.", "money"),
        ("Ten % is yours.", "money"),
        ("See https://shop.example for more.", "links"),
        ("See tidewater.com for more.", "links"),
        ("Look <b>here</b>.", "links"),
        ("Write to us@shop for more.", "addresses"),
        ("It comes on Tuesday.", "dates"),
        ("It was made in March.", "dates"),
        ("It was ready yesterday.", "dates"),
        ("We like Nutella a lot.", "names"),
        ("Come and LOOK here.", "names"),
        ("This is your last chance.", "claims"),
        ("There are only a few left.", "claims"),
        ("It is now half price.", "claims"),
        ("It is free for you.", "claims"),
        ("It is free's best friend.", "claims"),
        ("We say it is guaranteed.", "claims"),
        ("Don’t miss out.", "claims"),
        ("That would be crazy.", "harm"),
        ("This will cure your cold.", "harm"),
        ("Have a look \N{SMILING FACE WITH SUNGLASSES}.", "marks"),
        ("Well!! Look.", "marks"),
        ("Look! And look!", "marks"),
        ("For {somebody} like you.", "slots"),
        ("For {Somebody like you.", "braces"),
        ("For [name] like you.", "braces"),
        ("Like {first_name} says.", "roles"),
        ("See {cta_link} for it.", "roles"),
        ("For {product_1} and {product_1}.", "roles"),
    ],
)
def test_a_bad_sentence_is_refused_by_its_rule(words: str, rule: str) -> None:
    found = verdicts("A quick look at the shelf will tell you.", words)
    assert found[rule] != "ok", found
    assert not passes(found)


@pytest.mark.parametrize(
    "words",
    [
        "Please feel free to look around.",
        "You may march along.",
        "No hurry at all.",
        "It is a hassle-free thing.",
        "I'd say so, and I know.",
    ],
)
def test_harmless_neighbours_of_refused_words_pass(words: str) -> None:
    assert passes(verdicts("A quick look at the shelf will tell you.", words))


def test_what_a_fact_backs_may_be_said() -> None:
    sentence = "There's a discount for you."
    assert verdicts("A quick look at the shelf will tell you.", sentence, ALL - {"offer", "coupon_code"})["claims"] == "discount"
    assert passes(verdicts("A quick look at the shelf will tell you.", sentence))
    returned = "It's back in stock and within reach."
    assert not passes(verdicts("A quick look at the shelf will tell you.", returned))
    assert passes(verdicts("A quick look at the shelf will tell you.", returned, trigger="back_in_stock"))


def test_a_slot_without_its_fact_is_refused() -> None:
    assert check(GOOD, ALL - {"product_1"})["slots"] == "{product_1}"


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("Subject: A word about {product_1}", "A word", "form"),
        ("Preheader: In", "Preview: In", "form"),
        ("Order again: {cta_link}", "Order again", "form"),
        ("Order again: {cta_link}", "{cta_link}", "form"),
        ("Order again: {cta_link}", "Order again: {cta_link} now", "form"),
        ("Hi {first_name},", "Hi {first_name} from {shop_name},", "roles"),
        ("A word about {product_1}", "A word for {first_name}", "roles"),
        ("A word about {product_1}", "A word that goes on and on about {product_1} until nobody wants to read it", "lengths"),
        ("without any fuss.", "without any fuss, " + "and so on, " * 12, "lengths"),
        ("If you still have plenty, simply let this one pass.", "so it goes on and on " * 30, "lengths"),
        (GOOD.split("\n\n")[2], "Too short to say a thing.", "lengths"),
        (
            GOOD.split("\n\n")[2],
            "Liebe Kundin, bald ist wieder Kaffee alle, und wir freuen uns sehr auf deinen Besuch bei uns. " * 2,
            "language",
        ),
    ],
)
def test_form_roles_lengths_language(old: str, new: str, rule: str) -> None:
    assert verdicts(old, new)[rule] != "ok"


@given(st.text(max_size=200))
def test_anything_at_all_gets_a_verdict(text: str) -> None:
    found = check(text, ALL)
    assert set(found) == set(check(GOOD, ALL))
    assert check_words(text, ALL).items() <= found.items() or text.startswith("Subject: ")


@given(st.text(alphabet="0123456789٣४½²", min_size=1, max_size=5))
def test_no_digit_of_any_script_passes(number: str) -> None:
    assert not passes(verdicts("A quick look", f"A quick {number} look"))
