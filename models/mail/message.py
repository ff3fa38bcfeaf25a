"""From a draft's words and a customer's facts to the bytes that a mail server gets.

The MJML layout is turned into HTML once; each mail's values are put in
afterwards, escaped, in one pass, so that no value is ever read as markup or as
another placeholder.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.header import Header
from email.utils import format_datetime, formataddr
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mrml
import msgspec

from models.mail.money import price
from models.mail.slots import clean, fill, slots_in
from schemas.config import ShopSettings, SmtpSettings
from schemas.errors import PhrasebookError, SettingsError
from schemas.mail import Draft, Intent

LAYOUT = Path(__file__).with_name("mail.mjml")
SHOP_CHECKED = {  # what no mail may lack
    "name": "the shop's name",
    "postal_address": "the sender's postal address",
    "from_email": "the sender's address",
    "link": "a link",
    "unsubscribe": "a way to unsubscribe",
    "unsubscribe_mailto": "an address to unsubscribe at",
}
LONGEST_NAME = 60  # characters of a first name; whoever calls themselves a page of text, or a link, is greeted without
LONGEST_LINK = 500  # characters of the shop's own web addresses
LONGEST_ADDRESS = 254  # characters of a mail address, RFC 5321; with LONGEST_LINK and the token List-Unsubscribe keeps within a line
LONGEST_LINE = 998  # bytes without CRLF, RFC 5322; List-Unsubscribe is never folded: not every reader joins it again
_NO_LINK = re.compile(r"[\x00-\x20\x7f<>\"\\^`{|}]")
_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?|[0-9a-fA-F:.]+")  # a name, or an address of version 6
_PLAIN = re.compile(r"[^A-Za-z0-9._-]")
_MARK = re.compile(r"@@([a-z]+)@@")
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
SERVICE = "You get this because of your order or your message to us. No more of our offers?"
MARKETING = "You get this because you agreed to hear from us."


class MailParts(msgspec.Struct, frozen=True):
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


@lru_cache(maxsize=4096)
def parts(text: str) -> MailParts:
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
    return MailParts(subject, headers.get("Preheader", "").strip(), tuple(paragraphs[:-1]), label or "{shop_name}")


def facts(intent: Intent, first_name: str, shop: ShopSettings) -> dict[str, str]:
    """The value of each slot that this intent can fill; those without a value are left out."""
    found = dict(intent.facts.values)
    for number, product in enumerate(intent.facts.products[:3], 1):
        found[f"product_{number}"] = product.name
        found[f"price_{number}"] = price(product, shop.currency)
    if intent.facts.products:
        found.setdefault("category", intent.facts.products[0].category)
    called = clean(first_name)
    if len(called) > LONGEST_NAME or "://" in called:
        called = ""
    found |= {"first_name": called or "there", "shop_name": shop.name, "agent_name": shop.agent_name, "cta_link": shop.link}
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


def check_shop(shop: ShopSettings, *keys: str) -> None:
    """Raises SettingsError where the shop's settings (of these keys, or any) can't stand in a lawful mail."""
    for key in keys or SHOP_CHECKED:
        value = getattr(shop, key)
        if not clean(value):
            raise SettingsError(f"shop.{key} is empty: every mail must carry {SHOP_CHECKED[key]}; write it there")
        if key in ("from_email", "unsubscribe_mailto") and address(value) != value:
            raise SettingsError(f"shop.{key} = {value!r} is no email address in plain ASCII: mend it")
        if key in ("from_email", "unsubscribe_mailto") and len(value) > LONGEST_ADDRESS:
            raise SettingsError(f"shop.{key} has {len(value)} characters, mail servers take {LONGEST_ADDRESS}: use a shorter one")
        if key == "unsubscribe" and not value.startswith("https://"):
            raise SettingsError(f"shop.unsubscribe = {value!r} must be an https:// address: RFC 8058 asks for it")
        if key == "link" and not value.startswith(("https://", "http://")):
            raise SettingsError(f"shop.link = {value!r} must be an https:// address: a mail's button leads there")
        if key in ("link", "unsubscribe") and (fault := _fault_of(value)):
            raise SettingsError(f"shop.{key} = {value[:80]!r} can't stand in a mail: {fault}")
        if key == "unsubscribe" and "#" in value:
            raise SettingsError(f"shop.unsubscribe = {value!r} has a '#': the mail's token behind it would reach no server; leave it out")


def _fault_of(link: str) -> str:
    """Why a header or a button can't carry this web address as it stands, with the mend; "" where it can."""
    if not link.isascii():
        return "it isn't ASCII; write its host in punycode (xn--…) and the rest with %-escapes"
    if _NO_LINK.search(link):
        return 'a space or one of < > " \\ ^ ` { | } ends it; write that as a %-escape'
    if len(link) > LONGEST_LINK:
        return f"it has {len(link)} characters, a header's line has room for {LONGEST_LINK}; use a shorter one"
    try:
        host, _ = urlsplit(link).hostname, urlsplit(link).port
    except ValueError as error:
        return f"{error}; write it as https://host/path"
    return "" if host and _HOST.fullmatch(host) else "it names no host; write it as https://host/path"


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
    headers = {
        "From": _mailbox(shop.from_name, shop.from_email),
        "To": recipient,
        "Subject": _words(subject),
        "Date": format_datetime(datetime.fromtimestamp(at, UTC)),
        "Message-ID": message_id(intent.intent_id, shop),
        "List-Unsubscribe": f"<{leave}>, <mailto:{shop.unsubscribe_mailto}?subject=unsubscribe%20{mark}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "Feedback-ID": ":".join(_PLAIN.sub("_", name) for name in (intent.trigger, intent.cluster, draft.release[:16], "mailtide")),
        "X-Mailtide-Intent": intent.intent_id,
    }
    plain = [fill(paragraph, values) for paragraph in words.paragraphs]
    label = fill(words.label, values)
    footer = f"{clean(shop.name)}\n{clean(shop.postal_address)}\n{why} Unsubscribe: {leave}"
    text = "\n\n".join([*plain, f"{label}: {values['cta_link']}", footer]) + "\n"
    inner = "".join(f'<p style="margin:0 0 16px">{html.escape(paragraph)}</p>' for paragraph in plain)
    page = {"lang": intent.locale, "subject": subject, "preheader": fill(words.preheader, values), "shop": shop.name, "label": label}
    page |= {"link": values["cta_link"], "address": shop.postal_address, "why": why, "unsubscribe": leave}
    styled = _page({name: html.escape(clean(value)) for name, value in page.items()} | {"body": inner})
    # Nobody without the key can put this line into a product's name.
    boundary = "=_" + hmac.new(key, b"boundary" + intent.intent_id.encode(), hashlib.sha256).hexdigest()[:32]
    content = _assemble(headers, text, styled, boundary)
    return Mail(shop.from_email, recipient, headers["Message-ID"], (sign(content) if sign else b"") + content)


def _assemble(headers: Mapping[str, str], text: str, page: str, boundary: str) -> bytes:
    """The whole message with CRLF. Written out here: the email package takes eight times as long for the same bytes."""
    head = [f"{name}: {value}" for name, value in headers.items()]
    head += ["MIME-Version: 1.0", f'Content-Type: multipart/alternative; boundary="{boundary}"', "", ""]
    lines = "\r\n".join(head).encode("ascii")
    for kind, body in (("plain", text), ("html", page)):
        encoding, content = _transfer(body)
        opening = f'--{boundary}\r\nContent-Type: text/{kind}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
        lines += opening.encode("ascii") + content + b"\r\n"
    return lines + f"--{boundary}--\r\n".encode("ascii")


def _transfer(body: str) -> tuple[str, bytes]:
    """As it is where every server must take it: ASCII in lines of at most LONGEST_LINE; else base64."""
    if body.isascii() and max(map(len, body.split("\n"))) <= LONGEST_LINE:
        return "7bit", body.replace("\n", "\r\n").encode("ascii")
    return "base64", base64.encodebytes(body.replace("\n", "\r\n").encode()).replace(b"\n", b"\r\n")


def _mailbox(name: str, email: str) -> str:
    known = clean(name)
    return formataddr((known, email)) if _as_it_is(known) else f"{_words(known)} <{email}>"


def _words(text: str) -> str:
    """Text for a header: as it is, or in encoded words; what looks like an encoded word is encoded, so that it is read back as it is."""
    return text if _as_it_is(text) else Header(text, "utf-8", header_name="Subject").encode(linesep="\r\n")


def _as_it_is(text: str) -> bool:
    return text.isascii() and "=?" not in text and len(text) < LONGEST_LINE - 100


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
