"""Kept connections to one mail server, and what its answer means for a mail.

The line is DATA. Before it nothing can have been delivered, so anything that
goes wrong may be tried again. From it on, only the server's own answer says
what became of the mail; without one nobody knows, and it is never tried again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec
import structlog
from aiosmtplib import SMTP, SMTPDataError, SMTPException, SMTPRecipientRefused, SMTPSenderRefused, SMTPServerDisconnected

from models.mail.message import Mail
from schemas.config import SmtpSettings
from schemas.errors import SettingsError

log = structlog.get_logger()

FIRST_PAUSE = 0.25  # seconds before a server that can't be reached is asked again; doubles up to LONGEST_PAUSE
LONGEST_PAUSE = 30.0
SCHEMES = {"smtp": 25, "smtps": 465}


class Answer(msgspec.Struct, frozen=True):
    """``later``: clearly not taken, may be tried again; ``stopped``: ``may`` said no before DATA."""

    kind: Literal["sent", "failed", "later", "unknown", "stopped"]
    code: int | None = None


def options(smtp: SmtpSettings) -> dict[str, Any]:
    """Aiosmtplib's keywords for ``smtp.url``; SettingsError, which quotes nothing of it, where it is no such URL.

    Credentials, or a host that isn't this machine, want TLS: whoever sits between could take STARTTLS out of the server's
    greeting and read the rest. Plain is for who asks for it by name, ``?starttls=false``.
    """
    url, port = _split(smtp.url)
    wishes = {key: values[-1] for key, values in parse_qs(url.query).items()}
    if url.scheme not in SCHEMES or not url.hostname:
        raise SettingsError("smtp.url must be smtp://[user:password@]host[:port][?starttls=false] or smtps://…")
    if set(wishes) - {"starttls"} or wishes.get("starttls", "true") not in {"true", "false"}:
        raise SettingsError("smtp.url: the one option is ?starttls=true or ?starttls=false")
    private = bool(url.username) or not _is_loopback(url.hostname)
    start_tls = {"true": True, "false": False}.get(wishes.get("starttls", ""), True if private else None)
    keywords: dict[str, Any] = {"hostname": url.hostname, "port": port or SCHEMES[url.scheme], "timeout": smtp.timeout}
    keywords |= {"use_tls": True, "start_tls": False} if url.scheme == "smtps" else {"use_tls": False, "start_tls": start_tls}
    if url.username:
        keywords |= {"username": unquote(url.username), "password": unquote(url.password or "")}
    return keywords


def server_of(url: str) -> str:
    """``smtp.url`` for logs: scheme, host and port, never who logs in."""
    parts, port = _split(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")


def _split(text: str) -> tuple[SplitResult, int | None]:
    try:
        url = urlsplit(text)
        return url, url.port
    except ValueError:  # its text quotes what it took for the port, which may be a password with a sign that ends a host
        raise SettingsError(
            "smtp.url: what stands behind its host is no port; write @ : / ? # % in a user or password as %-escapes"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Mailer:
    """At most ``smtp.connections`` dialogues at once, over connections that are kept."""

    def __init__(self, smtp: SmtpSettings) -> None:
        self._free: asyncio.LifoQueue[SMTP] = asyncio.LifoQueue()
        self._server = server_of(smtp.url)
        self._all = [SMTP(**options(smtp)) for _ in range(smtp.connections)]
        for connection in self._all:
            self._free.put_nowait(connection)
        self._pause = 0.0
        self._again = 0.0  # monotonic: not before

    async def close(self) -> None:
        """Say goodbye where there is somebody to say it to."""
        for connection in self._all:
            if connection.is_connected:
                try:
                    await asyncio.wait_for(connection.quit(), 1.0)
                except (SMTPException, OSError):
                    connection.close()

    async def ready(self) -> bool:
        """Whether the server can be reached now: asked before a claim, so that an outage costs no claims."""
        if any(connection.is_connected for connection in self._all):
            return True
        if time.monotonic() < self._again:
            return False
        connection = await self._free.get()
        try:
            if not connection.is_connected:
                await connection.connect()
        except (SMTPException, OSError) as error:
            self._down(error)
            return False
        finally:
            self._free.put_nowait(connection)
        return True

    @property
    def pause(self) -> float:
        """Seconds until an unreachable server is worth asking again."""
        return max(0.05, self._again - time.monotonic())

    def _down(self, error: Exception) -> None:
        self._pause = min(LONGEST_PAUSE, self._pause * 2 or FIRST_PAUSE)
        self._again = time.monotonic() + self._pause
        log.warning(
            "the mail server can't be reached",
            server=self._server,
            error=type(error).__name__,
            mend="it offers no STARTTLS: use smtps://, or ask for plain with ?starttls=false" if "STARTTLS" in str(error) else "",
            again_in=self._pause,
        )

    async def deliver(self, mail: Mail, may: Callable[[], bool]) -> Answer:
        """One dialogue; ``may`` is asked last before DATA."""
        connection = await self._free.get()
        try:
            refused = await self._envelope(connection, mail)
            if refused is not None:
                return refused
            if not may():
                await self._reset(connection)
                return Answer("stopped")
            return await self._data(connection, mail)
        finally:
            self._free.put_nowait(connection)

    async def _envelope(self, connection: SMTP, mail: Mail) -> Answer | None:
        """Connect where needed, MAIL and RCPT: None where the server wants the mail."""
        kept = connection.is_connected
        try:
            if not kept:
                await connection.connect()
                self._pause = self._again = 0.0
            await connection.mail(mail.sender)
            await connection.rcpt(mail.recipient)
        except (SMTPSenderRefused, SMTPRecipientRefused) as error:
            await self._reset(connection)
            return refusal(error.code)
        except SMTPServerDisconnected as error:
            connection.close()
            if kept:  # closed while idle: nothing wrong with the server
                return await self._envelope(connection, mail)
            self._down(error)
            return Answer("later")
        except (SMTPException, OSError) as error:
            connection.close()
            self._down(error)
            return Answer("later")
        return None

    async def _data(self, connection: SMTP, mail: Mail) -> Answer:
        try:
            response = await connection.data(mail.content)
        except SMTPDataError as error:
            if error.code == 421:
                connection.close()
            else:
                await self._reset(connection)
            return refusal(error.code)
        except (SMTPException, OSError, asyncio.CancelledError):
            connection.close()
            return Answer("unknown")
        return Answer("sent", response.code)

    async def _reset(self, connection: SMTP) -> None:
        try:
            await connection.rset()
        except (SMTPException, OSError):
            connection.close()


def refusal(code: int) -> Answer:
    """What a reply that isn't 2xx says: 4xx try again, 5xx never; anything else says nothing."""
    if 400 <= code < 500:
        return Answer("later", code)
    return Answer("failed", code) if 500 <= code < 600 else Answer("unknown", code)
