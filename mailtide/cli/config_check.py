"""``config check`` and the phrase book's commands: every mistake with its place and mend."""

from __future__ import annotations

import base64
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

from fsspec.core import get_filesystem_class
from fsspec.utils import get_protocol
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from mailtide.settings import SHORT, examined, places
from models.customer.local_time import seconds_of_day
from models.mail.message import SHOP_CHECKED, check_shop, signer
from models.phrasebook.book import Book
from models.phrasebook.check import problems
from models.phrasebook.sample import sample
from models.triggers.rules import mistakes
from models.writer.base import locate
from schemas.config import Settings, ShopSettings, tls
from schemas.errors import MailtideError, SettingsError
from streams.profiles import KEY_BYTES
from streams.sender import smtp

_SERVERS = re.compile(r"([^\s:,/]+|\[[0-9a-fA-F:]+\]):\d{1,5}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{0,200}")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TONES = ("warm", "crisp", "playful")


def configuration(file: Path | None) -> list[str]:
    """One line for each mistake in the file (or the settings in use), its triggers and the phrase book."""
    problems, found = examined(file)
    source = file or Path(os.environ.get("MAILTIDE_CONFIG", "mailtide.toml"))
    lines = [*problems.values(), *shop(found.shop, source), *sending(found, source, problems)]
    return [*lines, *services(found, source, problems), *triggers(found, source, problems), *phrasebook()]


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


def services(settings: Settings, source: Path, problems: Mapping[str, str]) -> Iterator[str]:
    """A line for each value at which a service would stop when it starts, or that no server would take."""
    at = _lines(source)
    checks: list[tuple[str, Callable[[], object]]] = [
        ("kafka.bootstrap", lambda: _servers(settings.kafka.bootstrap)),
        ("kafka.prefix", lambda: _prefix(settings.kafka.prefix)),
        ("kafka.sasl_mechanism", lambda: _mechanism(settings.kafka.sasl_mechanism)),
        ("kafka.ssl_cafile", lambda: tls(settings.kafka)),
        ("smtp.url", lambda: settings.smtp.url and smtp.options(settings.smtp)),
        ("smtp.dkim_key_file", lambda: signer(settings.smtp)),
        *((f"shop.{key}", lambda key=key: check_shop(settings.shop, key)) for key in SHOP_CHECKED),
        ("monitor.groups", lambda: _pattern(settings.monitor.groups)),
        ("store.profiles", lambda: _database(settings.store.profiles)),
        ("store.key", lambda: _key(settings.store.key)),
        ("training.artifacts", lambda: _artifacts(settings.training.artifacts)),
        ("writer.base_model", lambda: locate(settings.writer.base_model)),
    ]
    for name, check in checks:
        table, _, key = name.partition(".")
        variables = [f"MAILTIDE_{table}_{key}".upper(), *(short for short, place in SHORT.items() if place == (table, key))]
        variable = next((variable for variable in variables if variable in os.environ), "")
        if name in problems or variable in problems:
            continue
        try:
            check()
        except MailtideError as error:
            yield f"{f'{variable} in the environment' if variable else _place(source, at, name, table)}: {error}"


def _servers(text: str) -> None:
    for server in text.split(",") if text.strip() else ():
        if not _SERVERS.fullmatch(server.strip()) or int(server.rpartition(":")[2]) > 65535:
            raise SettingsError(f"kafka.bootstrap: {server.strip()!r} is no server; write it as 'host:9092', several with commas")


def _prefix(text: str) -> None:
    if not _TOPIC.fullmatch(text):
        raise SettingsError(f"kafka.prefix = {text!r} can't begin a topic's name; use letters, digits, '.', '_' and '-'")


def _mechanism(text: str) -> None:
    if text not in MECHANISMS:
        raise SettingsError(f"kafka.sasl_mechanism = {text!r} is none of ours; choose among {', '.join(MECHANISMS)}")


def _pattern(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise SettingsError(f"monitor.groups = {text!r} is no regular expression: {error}; mend it") from error


def _key(text: str) -> None:
    if not text:
        return
    try:
        given = len(base64.b64decode(text, validate=True))
    except ValueError:
        given = 0
    if given != KEY_BYTES:
        raise SettingsError(f"store.key must be base64 of {KEY_BYTES} bytes: make one with 'openssl rand -base64 32'")


def _database(text: str) -> None:
    if not text:
        return
    try:
        make_url(text).get_dialect()
    except (SQLAlchemyError, ImportError) as error:
        # Without what it says: a URL may hold a password.
        raise SettingsError("store.profiles is no SQLAlchemy URL of a database that is installed; write it as 'sqlite:///file'") from error


def _artifacts(text: str) -> None:
    scheme = get_protocol(text)
    try:
        get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise SettingsError(f"training.artifacts: {scheme}:// is none of fsspec's stores that are installed: {error}") from error


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


def samples(trigger: str | None, tone: str | None, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Whole mails with trigger, tone and number; SettingsError where there is no such trigger or tone."""
    book = Book.load()
    if trigger is not None and trigger not in book.triggers:
        raise SettingsError(f"{trigger!r} is not in the phrase book; choose among {', '.join(book.triggers)}")
    if tone is not None and tone not in TONES:
        raise SettingsError(f"{tone!r} is no tone; choose among {', '.join(TONES)}")
    for name in [trigger] if trigger else book.triggers:
        for each in [tone] if tone else TONES:
            for number, mail in enumerate(sample(book, name, each, n, seed), 1):
                yield {"trigger": name, "tone": each, "number": number, "mail": mail}
