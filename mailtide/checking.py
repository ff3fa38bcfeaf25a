"""``config check`` and the phrase book's commands: every mistake with its place and mend."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

from mailtide.settings import examined, places
from models.phrasebook.book import Book
from models.phrasebook.check import problems
from models.phrasebook.sample import sample
from models.triggers import mistakes
from models.zones import seconds_of_day
from schemas.config import Settings, ShopSettings
from schemas.errors import MailtideError, SettingsError

TONES = ("warm", "crisp", "playful")


def configuration(file: Path | None) -> list[str]:
    """One line for each mistake in the file (or the settings in use), its triggers and the phrase book."""
    problems, found = examined(file)
    source = file or Path(os.environ.get("MAILTIDE_CONFIG", "mailtide.toml"))
    lines = [*problems.values(), *shop(found.shop, source), *sending(found, source, problems)]
    return [*lines, *triggers(found, source, problems), *phrasebook()]


def shop(found: ShopSettings, source: Path) -> list[str]:
    """A line for each link of the example shop that a shop of its own would send: one-click unsubscribes would go astray."""
    example = ShopSettings()
    if found.from_email == example.from_email:
        return []
    left = [name for name in ("link", "unsubscribe", "unsubscribe_mailto") if getattr(found, name) == getattr(example, name)]
    return [f"{source}: shop.{name} is still the example's, {getattr(found, name)!r}; set it beside shop.from_email" for name in left]


def sending(settings: Settings, source: Path, problems: Mapping[str, str]) -> Iterator[str]:
    """A line for each time of day and zone that is none."""
    at = _lines(source)
    for key in ("quiet_start", "quiet_end"):
        name = f"sending.{key}"
        try:
            seconds_of_day(getattr(settings.sending, key), key)
        except SettingsError as error:
            if name not in problems:
                yield f"{_place(source, at, name)}: {error}"
    zone = settings.shop.timezone
    if zone not in available_timezones():
        near = difflib.get_close_matches(zone, available_timezones(), 1)
        mend = f"did you mean {near[0]!r}?" if near else "write it as 'America/New_York'"
        yield f"{_place(source, at, 'shop.timezone')}: shop.timezone = {zone!r} is no IANA zone; {mend}"


def triggers(settings: Settings, source: Path, problems: Mapping[str, str]) -> Iterator[str]:
    """A line for each reason why a trigger can't work that ``problems`` doesn't name: an unknown event, no words, a name used twice."""
    at = _lines(source)
    names: set[str] = set()
    book = Book.load()
    for position, trigger in enumerate(settings.trigger):
        table = f"trigger[{position}]"
        for key, said in mistakes(trigger):
            # What is told of ``on`` explains a ``kind`` that doesn't fit it.
            if f"{table}.{key}" not in problems and not (key == "kind" and f"{table}.on" in problems):
                yield f"{_place(source, at, f'{table}.{key}', table)}: {said}"
        if f"{table}.name" in problems:
            continue
        place = _place(source, at, f"{table}.name", table)
        if trigger.name in names:
            yield f"{place}: trigger {trigger.name!r} stands twice; give one another name"
        names.add(trigger.name)
        try:
            book.moves(trigger.name)
        except MailtideError as error:
            yield f"{place}: trigger {trigger.name!r}: {error}"


def _lines(source: Path) -> dict[str, int]:
    try:
        return places(source.read_text())
    except (OSError, UnicodeDecodeError):
        return {}


def _place(source: Path, at: Mapping[str, int], *names: str) -> str:
    """Where the first of these names that stands in the file does."""
    line = next((at[name] for name in names if name in at), None)
    return f"{source}:{line}" if line else str(source)


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
    """Whole mails with a heading each; SettingsError where there is no such trigger or tone."""
    book = Book.load()
    if trigger is not None and trigger not in book.triggers:
        raise SettingsError(f"{trigger!r} is not in the phrase book; choose among {', '.join(book.triggers)}")
    if tone is not None and tone not in TONES:
        raise SettingsError(f"{tone!r} is no tone; choose among {', '.join(TONES)}")
    for name in [trigger] if trigger else book.triggers:
        for each in [tone] if tone else TONES:
            for number, mail in enumerate(sample(book, name, each, n, seed), 1):
                yield f"{name} · {each} · {number}", mail
