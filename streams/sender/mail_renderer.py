"""Drafts become mails: the customer's address and first name join them here, and go no further than the mail server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import msgspec

from models.mail.guard import check, passes
from models.mail.message import Mail, address, compose, facts, fills
from models.phrasebook.book import Book
from schemas.config import Settings
from schemas.errors import PhrasebookError
from schemas.mail import Delivery, Draft, iso
from streams.profiles import Profile, Profiles
from streams.sender.ledger import delivery_of


class RenderedMail(msgspec.Struct, frozen=True):
    """A mail, and the draft it was made of: the approved template where the given draft would not do."""

    draft: Draft
    mail: Mail


class MailRenderer:
    """``sign``: a function from a message to its DKIM header, or None."""

    def __init__(self, settings: Settings, sign: Callable[[bytes], bytes] | None) -> None:
        self.settings, self.sign = settings, sign
        self.service = {trigger.name for trigger in settings.trigger if not trigger.marketing}
        self.profiles: Profiles | None = None
        self.key = b""

    async def start(self) -> None:
        """Open the profile store."""
        self.profiles = await asyncio.to_thread(Profiles.open, self.settings)
        self.key = unsubscribe_key(self.settings)

    async def close(self) -> None:
        """Close it."""
        if self.profiles is not None:
            await asyncio.to_thread(self.profiles.close)

    async def write(self, drafts: Sequence[Draft], now: Callable[[Draft], float], wall: float) -> dict[str, RenderedMail | Delivery]:
        """By intent id, each draft's mail, or the outcome that ends it for want of an address or of facts.

        One whose customer has no profile here is missing: intake knows an
        address, so it lies in another store, and the mail can wait for it.
        """
        if self.profiles is None:
            return {}
        known = await asyncio.to_thread(self.profiles.get_many, [draft.intent.customer for draft in drafts])
        made: dict[str, RenderedMail | Delivery] = {}
        for draft in drafts:
            profile = known.get(draft.intent.customer)
            if profile is not None:
                made[draft.intent.intent_id] = self._write(draft, profile, iso(now(draft)), wall)
            await asyncio.sleep(0)  # a mail takes a millisecond; heartbeats and dialogues go on between two
        return made

    def _write(self, draft: Draft, profile: Profile, at: str, wall: float) -> RenderedMail | Delivery:
        recipient = address(profile.email)
        if recipient is None:
            return delivery_of(draft, "suppressed", at=at, reason="no_address")
        try:
            fit = self._fit(draft, profile)
            marketing = draft.intent.trigger not in self.service
            first_name, shop = profile.first_name, self.settings.shop
            mail = compose(fit, recipient, first_name, shop, self.key, wall, marketing=marketing, sign=self.sign)
        except PhrasebookError as error:
            ended = delivery_of(draft, "failed", at=at)
            return msgspec.structs.replace(ended, guard=draft.guard | {"facts": str(error)})
        return RenderedMail(fit, mail)

    def _fit(self, draft: Draft, profile: Profile) -> Draft:
        """The draft if every slot has a fact and the guard admits its words; else the approved template."""
        values = facts(draft.intent, profile.first_name, self.settings.shop)
        verdicts = _verdicts(draft.text, frozenset(values), draft.intent.trigger)
        if fills(draft.text, values) and passes(verdicts):
            return draft
        text = _book().template(draft.intent.trigger, frozenset(values))
        return msgspec.structs.replace(draft, text=text, origin="template", choices=(), guard=draft.guard | verdicts)


@lru_cache(maxsize=4096)
def _verdicts(text: str, slots: frozenset[str], trigger: str) -> dict[str, str]:
    """Pool drafts and templates come again and again."""
    return check(text, slots, trigger)


@cache
def _book() -> Book:
    return Book.load()


def unsubscribe_key(settings: Settings) -> bytes:
    """The key of the unsubscribe tokens, derived from the profile store's master key; its store must have been opened."""
    master = settings.store.key.encode() or (Path(settings.home) / "keys" / "master").read_bytes()
    return hmac.new(master.strip(), b"mailtide unsubscribe", hashlib.sha256).digest()
