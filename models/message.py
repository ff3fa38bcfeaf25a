"""From a draft's words and a customer's facts to the bytes that a mail server gets.

The MJML layout is turned into HTML once; each mail's values are put in
afterwards, escaped, in one pass, so that no value is ever read as markup or as
another placeholder.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import mrml
import msgspec

from models.slots import clean, fill, slots_in
from schemas.config import ShopSettings, SmtpSettings
from schemas.errors import PhrasebookError, SettingsError
from schemas.mail import Draft, Intent, Product

LAYOUT = Path(__file__).with_name("mail.mjml")
# Folding at 78 would turn the long List-Unsubscribe into encoded words, which RFC 8058 readers don't decode.
POLICY = SMTP.clone(max_line_length=998)
_MARK = re.compile(r"@@([a-z]+)@@")
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "CAD": "CA$", "AUD": "A$", "BRL": "R$", "KRW": "₩"}
WHOLE = {"JPY", "KRW"}  # currencies without a smaller unit
SERVICE = "You get this because of your order or your message to us. No more of our offers?"
MARKETING = "You get this because you agreed to hear from us."


class Words(msgspec.Struct, frozen=True):
    """A draft taken apart, slots still in it. ``paragraphs``: greeting and text; ``label``: the button's words."""

    subject: str
    preheader: str
    paragraphs: tuple[str, ...]
    label: str


class Mail(msgspec.Struct, frozen=True):
    """What goes to the server. ``sender`` and ``recipient`` are the envelope's; ``message_id`` with its angle brackets."""

    sender: str
    recipient: str
    message_id: str
    content: bytes


def parts(text: str) -> Words:
    """Take a draft apart: ``Subject: …``, ``Preheader: …``, an empty line, paragraphs, and the call to action last.

    Raises PhrasebookError for a text of another shape.
    """
    head, _, body = text.strip().partition("\n\n")
    headers = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    paragraphs = [" ".join(part.split()) for part in body.split("\n\n") if part.strip()]
    subject = headers.get("Subject", "").strip()
    if not subject or not paragraphs or not paragraphs[-1].endswith("{cta_link}"):
        raise PhrasebookError(f"draft {text[:30]!r}… is no mail: it needs 'Subject: …', an empty line, text, and a call to action last")
    label = paragraphs[-1].removesuffix("{cta_link}").rstrip().rstrip(":").rstrip()
    return Words(subject, headers.get("Preheader", "").strip(), tuple(paragraphs[:-1]), label or "{shop_name}")


def price(product: Product, fallback: str) -> str:
    """The product's price as the event gave it, in its currency; empty where there is none.

    >>> price(Product("p", "Bread", price=2.5, currency="USD"), "EUR")
    '$2.50'
    """
    if product.price is None or not 0.0 <= product.price < 1e12:
        return ""
    currency = (product.currency or fallback).upper()
    amount = Decimal(repr(float(product.price)))
    places = 0 if currency in WHOLE else 2
    exact = max(places, -int(amount.normalize().as_tuple().exponent))
    # More than four decimals are the noise of binary fractions, not a price.
    amount = amount.quantize(Decimal(1).scaleb(-(exact if exact <= 4 else places)), ROUND_HALF_UP)
    symbol = SYMBOLS.get(currency)
    return f"{symbol}{amount:,}" if symbol else f"{clean(currency)} {amount:,}".strip()


def facts(intent: Intent, first_name: str, shop: ShopSettings) -> dict[str, str]:
    """The value of each slot that this intent can fill; those without a value are left out."""
    found = dict(intent.facts.values)
    for number, product in enumerate(intent.facts.products[:3], 1):
        found[f"product_{number}"] = product.name
        found[f"price_{number}"] = price(product, shop.currency)
    if intent.facts.products:
        found.setdefault("category", intent.facts.products[0].category)
    found |= {"first_name": clean(first_name) or "there", "shop_name": shop.name, "agent_name": shop.agent_name, "cta_link": shop.link}
    return {name: value for name, value in found.items() if clean(value)}


def fills(text: str, values: Mapping[str, str]) -> bool:
    """Whether every slot of the text has a value."""
    return all(clean(values.get(name, "")) for name in slots_in(text))


def address(text: str) -> str | None:
    """The address if a server can be given it as it stands, with the domain in ASCII; None otherwise."""
    local, _, domain = clean(text).rpartition("@")
    try:
        plain = f"{local}@{domain.encode('idna').decode()}"
    except UnicodeError:
        return None
    return plain if _ADDRESS.fullmatch(plain) and ".." not in local and not local.startswith(".") else None


def check_shop(shop: ShopSettings) -> None:
    """Raises SettingsError where the shop's settings can't stand in a lawful mail."""
    if not clean(shop.postal_address):
        raise SettingsError("shop.postal_address is empty: every mail must carry the sender's postal address; write it there")
    for name in ("from_email", "unsubscribe_mailto"):
        if address(getattr(shop, name)) is None:
            raise SettingsError(f"shop.{name} = {getattr(shop, name)!r} is no email address: mend it")
    if not shop.unsubscribe.startswith("https://"):
        raise SettingsError(f"shop.unsubscribe = {shop.unsubscribe!r} must be an https:// address: RFC 8058 asks for it")


def token(intent_id: str, key: bytes) -> str:
    """What the unsubscribe link carries: it names the mail, not the person, and can't be made without the key."""
    return f"{intent_id}.{hmac.new(key, intent_id.encode(), hashlib.sha256).hexdigest()[:32]}"


def token_intent(text: str, key: bytes) -> str | None:
    """The intent that a token names; None where the token isn't ours."""
    intent_id = text.partition(".")[0]
    return intent_id if hmac.compare_digest(token(intent_id, key).encode(), text.encode()) else None


def message_id(intent_id: str, shop: ShopSettings) -> str:
    """The same intent's mail has the same id, however often it is tried."""
    return f"<{intent_id}@{shop.from_email.rpartition('@')[2]}>"


def compose(
    draft: Draft,
    recipient: str,
    first_name: str,
    shop: ShopSettings,
    key: bytes,
    at: float,
    *,
    marketing: bool = True,
    sign: Callable[[bytes], bytes] | None = None,
) -> Mail:
    """Fill the draft and wrap it: text and HTML, headers, footer; ``at`` in seconds becomes ``Date``; ``sign`` gives a DKIM header.

    Raises PhrasebookError where a slot has no value or the text is no mail.
    """
    intent = draft.intent
    words, values = parts(draft.text), facts(intent, first_name, shop)
    mark = token(intent.intent_id, key)
    leave = f"{shop.unsubscribe}{'&' if '?' in shop.unsubscribe else '?'}t={mark}"
    why = MARKETING if marketing else SERVICE
    subject = fill(words.subject, values)
    made = EmailMessage(policy=POLICY)
    made["From"] = _mailbox(shop.from_name, shop.from_email)
    made["To"] = Address(addr_spec=recipient)
    made["Subject"] = _header(subject)
    made["Date"] = format_datetime(datetime.fromtimestamp(at, UTC))
    made["Message-ID"] = message_id(intent.intent_id, shop)
    made["List-Unsubscribe"] = f"<{leave}>, <mailto:{shop.unsubscribe_mailto}?subject=unsubscribe%20{mark}>"
    made["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    made["Feedback-ID"] = f"{intent.trigger}:{intent.cluster}:{draft.release[:16]}:mailtide"
    made["X-Mailtide-Intent"] = intent.intent_id
    plain = [fill(paragraph, values) for paragraph in words.paragraphs]
    label = fill(words.label, values)
    footer = f"{clean(shop.name)}\n{clean(shop.postal_address)}\n{why} Unsubscribe: {leave}"
    made.set_content("\n\n".join([*plain, f"{label}: {values['cta_link']}", footer]) + "\n")
    inner = "".join(f'<p style="margin:0 0 16px">{html.escape(paragraph)}</p>' for paragraph in plain)
    page = {"lang": intent.locale, "subject": subject, "preheader": fill(words.preheader, values), "shop": shop.name, "label": label}
    page |= {"link": values["cta_link"], "address": shop.postal_address, "why": why, "unsubscribe": leave}
    made.add_alternative(_page({name: html.escape(clean(value)) for name, value in page.items()} | {"body": inner}), subtype="html")
    content = made.as_bytes()
    return Mail(address(shop.from_email) or shop.from_email, recipient, str(made["Message-ID"]), (sign(content) if sign else b"") + content)


def _mailbox(name: str, email: str) -> Address:
    return Address(display_name=_header(clean(name)), addr_spec=email)


def _header(text: str) -> str:
    """Text for a header. The email package decodes encoded words in what it is given, line breaks in them included: none may be left."""
    return text.replace("=?", "= ?")


@lru_cache(maxsize=1)
def _layout() -> str:
    """The HTML with its placeholders; short lines, so that plain mails need no transfer encoding."""
    return str(mrml.to_html(LAYOUT.read_text()).content).replace("><", ">\n<")


def _page(values: Mapping[str, str]) -> str:
    return _MARK.sub(lambda match: values[match.group(1)], _layout())


def signer(smtp: SmtpSettings) -> Callable[[bytes], bytes] | None:
    """A function from a message to its DKIM-Signature header; None where DKIM isn't configured.

    Raises SettingsError where it is configured in part, or the key can't be read.
    """
    given = {"dkim_selector": smtp.dkim_selector, "dkim_domain": smtp.dkim_domain, "dkim_key_file": smtp.dkim_key_file}
    if not any(given.values()):
        return None
    for name, value in given.items():
        if not value:
            raise SettingsError(f"smtp.{name} is empty while the rest of DKIM is set: give all of {', '.join(given)}")
    try:
        key = Path(smtp.dkim_key_file).read_bytes()
    except OSError as error:
        raise SettingsError(f"smtp.dkim_key_file = {smtp.dkim_key_file!r} can't be read ({error.strerror}): mend it") from error
    return _dkim(smtp.dkim_selector, smtp.dkim_domain, key)


def _dkim(selector: str, domain: str, key: bytes) -> Callable[[bytes], bytes]:
    import dkim

    signed: list[bytes] = [
        name.encode()
        for name in ("From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post", "Feedback-ID")
    ]

    def sign(content: bytes) -> bytes:
        found: Any = dkim.sign(content, selector.encode(), domain.encode(), key, include_headers=signed)
        return bytes(found)

    return sign
