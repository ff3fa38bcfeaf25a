from __future__ import annotations

import base64
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as trying
from hypothesis import strategies as st

from models.mail.message import address, check_shop, compose, facts, message_id, parts, signer, token, token_intent
from models.mail.money import price
from schemas.config import ShopSettings, SmtpSettings
from schemas.errors import PhrasebookError, SettingsError
from schemas.mail import Draft, Facts, Intent, Product, Source, iso

SHOP = ShopSettings()
KEY = b"k" * 32
TEXT = (
    "Subject: {product_1} for you\nPreheader: From {shop_name}\n\nHi {first_name},\n\n"
    "You bought {product_1} at {price_1}. Shall we?\n\nBuy it again: {cta_link}"
)


def draft(text: str = TEXT, product: str = "Italian bread", **values: str) -> Draft:
    goods = (Product("p-1", product, "Bakery", 2.5, "USD"),)
    intent = Intent("ab" * 16, "c-1", "replenishment", "1", iso(0), iso(9e8), "c1", Facts(goods, values), Source("e", 0, 0), iso(0))
    return Draft(intent, text, "template", "guided", "base", 1)


def read(name: str = "Maria", shop: ShopSettings = SHOP, made: Draft | None = None, **more: Any) -> EmailMessage:
    mail = compose(made or draft(), "maria@customers.example.com", name, shop, KEY, 1e9, **more)
    found = message_from_bytes(mail.content, policy=policy.default)
    assert isinstance(found, EmailMessage)
    return found


def body(mail: EmailMessage, kind: str) -> str:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content())


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


PLAIN_TAGS = set(Page(body(read(), "html")).tags)


def test_headers_that_the_law_and_the_big_providers_ask_for() -> None:
    mail = read()
    leave, mailto = str(mail["List-Unsubscribe"]).split(", ")
    mark = token("ab" * 16, KEY)
    assert leave == f"<https://tidewater.example.com/unsubscribe?t={mark}>"
    assert mailto == f"<mailto:unsubscribe@tidewater.example.com?subject=unsubscribe%20{mark}>"
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert mail["Message-ID"] == f"<{'ab' * 16}@tidewater.example.com>" == message_id("ab" * 16, SHOP)
    assert mail["From"] == "Tidewater Market <hello@tidewater.example.com>"
    assert mail["To"] == "maria@customers.example.com"
    assert mail["Date"] == "Sun, 09 Sep 2001 01:46:40 +0000"
    assert mail["Feedback-ID"] == "replenishment:c1:base:mailtide"
    assert mail["X-Mailtide-Intent"] == "ab" * 16
    assert mail["Subject"] == "Italian bread for you"


def test_headers_stand_on_the_wire_as_they_are() -> None:
    """Encoded words in List-Unsubscribe would hide it from RFC 8058 readers."""
    content = compose(draft(), "maria@customers.example.com", "Maria", SHOP, KEY, 1e9).content
    head, _, rest = content.partition(b"\r\n\r\n")
    assert b"\r\nList-Unsubscribe: <https://" in head
    assert b"=?" not in head
    assert max(map(len, rest.split(b"\r\n"))) <= 998


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_both_bodies_say_the_same(kind: str) -> None:
    text = body(read(), kind)
    if kind == "html":
        page = Page(text)
        text = page.text
        assert "https://tidewater.example.com" in page.links
        assert f"https://tidewater.example.com/unsubscribe?t={token('ab' * 16, KEY)}" in page.links
        assert "From Tidewater Market" in text  # the preheader
    for expected in ("Hi Maria,", "You bought Italian bread at $2.50. Shall we?", "Buy it again", SHOP.postal_address, "Unsubscribe"):
        assert expected in text
    assert "{" not in body(read(), "plain")
    assert "@@" not in text


def test_the_kinds_come_in_order() -> None:
    assert [part.get_content_type() for part in read().iter_parts()] == ["text/plain", "text/html"]


def test_no_font_or_picture_is_fetched_from_anywhere() -> None:
    page = body(read(), "html")
    assert "googleapis" not in page
    assert "src=" not in page


NASTY = [
    '<script>alert("x")</script>',
    "Eve\r\nBcc: all@example.com",
    "Eve\n\n<b>",
    "{coupon_code} {first_name}",
    "@@unsubscribe@@",
    "\u202eevil\u2066",
    'a" onclick="x',
    "&lt;b&gt;",
    "=?utf-8?q?=0ABcc:_x?=",
    "Zoë 李 🙂",
    "x" * 400,
]


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("where", ["name", "product"])
def test_nothing_breaks_out(nasty: str, where: str) -> None:
    mail = read(nasty) if where == "name" else read(made=draft(product=nasty))
    assert mail["Bcc"] is None
    assert len(mail.keys()) == len(read().keys())
    page = Page(body(mail, "html"))
    assert set(page.tags) == PLAIN_TAGS
    assert not any("\u202e" in text or "\u2066" in text for text in (body(mail, "plain"), page.text, str(mail["Subject"])))


@given(st.text(max_size=60), st.text(max_size=60))
@example("\x00", "\ud800")
@trying(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_makes_a_mail_of_the_same_shape(name: str, product: str) -> None:
    made = draft(product="x" + product)
    content = compose(made, "maria@customers.example.com", name, SHOP, KEY, 1e9).content
    mail = message_from_bytes(content, policy=policy.default)
    assert isinstance(mail, EmailMessage)
    assert len(mail.keys()) == 11
    page = Page(body(mail, "html"))
    assert set(page.tags) == PLAIN_TAGS
    assert "\n" not in str(mail["Subject"])


def test_a_name_that_is_not_known() -> None:
    for name in ("", "  ", "\u202e\n"):
        assert "Hi there," in body(read(name), "plain")


@pytest.mark.parametrize(
    ("value", "currency", "text"),
    [
        (2.5, "USD", "$2.50"),
        (0.1 + 0.2, "USD", "$0.30"),
        (1234.5, "EUR", "€1,234.50"),
        (1999.0, "JPY", "¥1,999"),
        (2.499, "usd", "$2.499"),
        (12.0, "CHF", "CHF 12.00"),
        (0.0, "", "$0.00"),
        (1e-7, "USD", "$0.00"),
        (None, "USD", ""),
        (-1.0, "USD", ""),
        (float("nan"), "USD", ""),
        (float("inf"), "USD", ""),
        (100.0, "GBP", "£100.00"),
    ],
)
def test_prices_as_the_event_gave_them(value: float | None, currency: str, text: str) -> None:
    assert price(Product("p", "x", "", value, currency), "USD") == text


@given(st.integers(0, 10**8))
def test_cents_survive(cents: int) -> None:
    assert price(Product("p", "x", "", cents / 100, "USD"), "USD").replace(",", "") == f"${cents // 100}.{cents % 100:02d}"


def test_facts_that_are_not_there_are_no_slots() -> None:
    values = facts(draft(coupon_code="SAVE5", order_id="").intent, "", SHOP)
    assert values["coupon_code"] == "SAVE5"
    assert values["category"] == "Bakery"
    assert {"order_id", "product_2", "price_2"}.isdisjoint(values)
    assert facts(draft(cta_link="https://evil.example.com").intent, "", SHOP)["cta_link"] == SHOP.link


@pytest.mark.parametrize(
    ("name", "greeted"), [("Ann", "Ann"), (" ", "there"), ("x" * 61, "there"), ("Win at https://evil.example.com", "there")]
)
def test_a_first_name_that_is_a_page_or_a_link_is_no_name(name: str, greeted: str) -> None:
    assert facts(draft().intent, name, SHOP)["first_name"] == greeted


def test_a_hole_is_no_mail() -> None:
    with pytest.raises(PhrasebookError, match="coupon_code"):
        read(made=draft(TEXT.replace("Shall we?", "Code {coupon_code}.")))


@pytest.mark.parametrize("text", ["", "Hello", "Subject: x", "Subject: x\n\nbody only", "Preheader: x\n\nHi\n\nGo: {cta_link}"])
def test_what_is_no_mail(text: str) -> None:
    with pytest.raises(PhrasebookError, match="is no mail"):
        parts(text)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("a@b.co", "a@b.co"),
        (" a.b+c@d-e.example.com ", "a.b+c@d-e.example.com"),
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("", None),
        ("a", None),
        ("a@b", None),
        ("a b@c.de", None),
        ("a@b.co\r\nRCPT TO:<x@y.z>", None),
        ("<a@b.co>", None),
        ("a..b@c.de", None),
        ("ä@b.co", None),
        ("a@b@c.de", None),
        ("a@" + "x" * 70 + ".de", None),
    ],
)
def test_addresses(given_: str, expected: str | None) -> None:
    assert address(given_) == expected


def test_tokens() -> None:
    made = token("ab" * 16, KEY)
    assert token_intent(made, KEY) == "ab" * 16
    for other in (made[:-1], made.replace("ab", "ac", 1), "", "é.x", token("ab" * 16, b"other")):
        assert token_intent(other, KEY) is None


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"postal_address": " "}, "postal_address"),
        ({"from_email": "nobody"}, "from_email"),
        ({"unsubscribe": "http://plain.example.com"}, "https"),
        ({"unsubscribe_mailto": ""}, "unsubscribe_mailto"),
        ({"unsubscribe": "https://läden.example/abmelden"}, "punycode"),
        ({"unsubscribe": "https://shop.example/abmelden/ja bitte"}, "space"),
        ({"unsubscribe": "https://shop.example/u>, <mailto:x@y.example"}, "space"),
        ({"unsubscribe": "https://shop.example/u\r\nBcc: x@y.example"}, "space"),
        ({"unsubscribe": "https://shop.example/u#leave"}, "'#'"),
        ({"unsubscribe": "https://"}, "no host"),
        ({"unsubscribe": "https:///u"}, "no host"),
        ({"unsubscribe": "https://shop.example:99999/u"}, "[Pp]ort"),
        ({"unsubscribe": "https://[1:2/u"}, "https://host/path"),
        ({"unsubscribe": "https://shop.example/" + "u" * 600}, "shorter"),
        ({"link": "https://shop.example/größe"}, "punycode"),
        ({"link": "https://shop.example/a b"}, "space"),
        ({"link": "https://?q=1"}, "no host"),
        ({"from_email": "hallo@läden.example"}, "from_email"),
        ({"from_email": "grüße@shop.example"}, "from_email"),
        ({"from_email": "a@" + "b" * 60 + ".de" * 70}, "shorter"),
        ({"unsubscribe_mailto": "leave@shop.example "}, "unsubscribe_mailto"),
    ],
)
def test_no_lawful_mail_no_start(change: dict[str, Any], names: str) -> None:
    check_shop(SHOP)
    with pytest.raises(SettingsError, match=names):
        check_shop(msgspec.structs.replace(SHOP, **change))


_ODD = st.sampled_from(
    ["https://", "http://", "shop.example", "/u", "?a=b", "#f", "ä", " ", "\r\n", ">", ",", "%20", ":", "[", "@", "x" * 300]
)


@given(st.lists(_ODD, max_size=5).map("".join), st.lists(_ODD, max_size=5).map("".join), st.lists(_ODD, max_size=4).map("".join))
@trying(max_examples=300, deadline=None)
def test_what_the_check_admits_stands_in_a_mail(unsubscribe: str, link: str, address_: str) -> None:
    """Each setting that passes, the others as they ship: no crash at the first mail, no line too long, no header broken."""
    for change in ({"unsubscribe": unsubscribe}, {"link": link}, {"from_email": address_}, {"unsubscribe_mailto": address_}):
        shop = msgspec.structs.replace(SHOP, **change)
        try:
            check_shop(shop)
        except SettingsError:
            continue
        mail = read(shop=shop)
        head = mail.as_bytes(policy=policy.SMTP).partition(b"\r\n\r\n")[0]
        assert head.isascii() and "Bcc" not in mail
        leave, mailto = str(mail["List-Unsubscribe"]).split(", <mailto:")
        assert leave.startswith(f"<{shop.unsubscribe}") and leave.endswith(">") and mailto.startswith(shop.unsubscribe_mailto)


def test_an_unsubscribe_address_with_a_query() -> None:
    shop = msgspec.structs.replace(SHOP, unsubscribe="https://shop.example.com/u?lang=en")
    assert str(read(shop=shop)["List-Unsubscribe"]).startswith("<https://shop.example.com/u?lang=en&t=")


def test_dkim_signs_what_is_sent(tmp_path: Path) -> None:
    import dkim
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    public = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = tmp_path / "dkim.pem"
    key.write_bytes(pem)
    sign = signer(SmtpSettings(dkim_selector="s1", dkim_domain="tidewater.example.com", dkim_key_file=str(key)))
    mail = compose(draft(), "maria@customers.example.com", "Zoë", SHOP, KEY, 1e9, sign=sign)
    record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
    signature = b"".join(mail.content.partition(b"\r\nFrom:")[0].lower().split())
    assert b"list-unsubscribe:list-unsubscribe-post" in signature
    assert dkim.verify(mail.content, dnsfunc=lambda *_args, **_more: record)
    assert not dkim.verify(mail.content.replace(b"Subject: ", b"Subject: Not "), dnsfunc=lambda *_args, **_more: record)


def test_half_a_dkim_is_a_mistake(tmp_path: Path) -> None:
    assert signer(SmtpSettings()) is None
    with pytest.raises(SettingsError, match="dkim_key_file"):
        signer(SmtpSettings(dkim_selector="s", dkim_domain="d"))
    with pytest.raises(SettingsError, match="can't be read"):
        signer(SmtpSettings(dkim_selector="s", dkim_domain="d", dkim_key_file=str(tmp_path / "none")))
