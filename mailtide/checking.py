"""``config check`` and the phrase book's commands: every mistake with its place and mend."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mailtide.settings import places, problems_and_settings
from models.passes import Pass
from models.phrasebook.book import Book
from models.phrasebook.check import problems
from models.phrasebook.sample import sample
from schemas.config import Settings, ShopSettings
from schemas.errors import MailtideError, SettingsError

TONES = ("warm", "crisp", "playful")


def configuration(file: Path | None) -> list[str]:
    """One line for each mistake in the file (or the settings in use), its triggers and the phrase book."""
    found = problems_and_settings(file)
    if isinstance(found, list):
        return [*found, *phrasebook()]
    return [*shop(found.shop, file), *triggers(found, file), *phrasebook()]


def shop(found: ShopSettings, file: Path | None) -> list[str]:
    """A line for each link of the example shop that a shop of its own would send: one-click unsubscribes would go astray."""
    example = ShopSettings()
    if found.from_email == example.from_email:
        return []
    place = str(file or os.environ.get("MAILTIDE_CONFIG", "mailtide.toml"))
    left = [name for name in ("link", "unsubscribe", "unsubscribe_mailto") if getattr(found, name) == getattr(example, name)]
    return [f"{place}: shop.{name} is still the example's, {getattr(found, name)!r}; set it beside shop.from_email" for name in left]


def triggers(settings: Settings, file: Path | None) -> list[str]:
    """One line for each trigger that can't work: an unknown condition name, no words in the phrase book, a name used twice."""
    source = file or Path(os.environ.get("MAILTIDE_CONFIG", "mailtide.toml"))
    at = places(source.read_text()) if source.exists() else {}
    lines: list[str] = []
    names: set[str] = set()
    book = Book.load()
    for position, trigger in enumerate(settings.trigger):
        line = at.get(f"trigger[{position}]")
        place = f"{source}:{line}" if line else str(source)
        if trigger.name in names:
            lines.append(f"{place}: trigger {trigger.name!r} stands twice; give one another name")
        names.add(trigger.name)
        try:
            Pass([trigger], settings.sending, settings.shop)
        except SettingsError as error:
            lines.append(f"{place}: {error}")
        try:
            book.moves(trigger.name)
        except MailtideError as error:
            lines.append(f"{place}: trigger {trigger.name!r}: {error}")
    return lines


def phrasebook() -> list[str]:
    """One line for each problem of the phrase book."""
    try:
        return [f"{p.file}:{p.line}: {p.clause}: {p.what}; {p.mend}" for p in problems(Book.load())]
    except MailtideError as error:
        return [str(error)]


def coverage() -> list[dict[str, Any]]:
    """Clauses and different mails of each trigger."""
    book = Book.load()
    return [{"trigger": name, "clauses": len(book.chapter(name).clauses), "mails": book.mails(name)} for name in book.triggers]


def samples(trigger: str | None, tone: str | None, n: int, seed: int) -> Iterator[tuple[str, str]]:
    """Whole mails with a heading each."""
    book = Book.load()
    if trigger is not None and trigger not in book.triggers:
        raise MailtideError(f"--trigger: {trigger!r} is not in the phrase book; choose among {', '.join(book.triggers)}")
    if tone is not None and tone not in TONES:
        raise MailtideError(f"--tone: {tone!r} is no tone; choose among {', '.join(TONES)}")
    for name in [trigger] if trigger else book.triggers:
        for each in [tone] if tone else TONES:
            for number, mail in enumerate(sample(book, name, each, n, seed), 1):
                yield f"{name} · {each} · {number}", mail
