"""What ``smtp.url`` means: TLS wherever somebody could listen, and no password in any message."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import SmtpSettings
from schemas.errors import SettingsError
from streams.sender.smtp import Mailer, options, server_of


@pytest.mark.parametrize(
    ("url", "start_tls", "use_tls"),
    [
        ("smtp://127.0.0.1:2525", None, False),  # ours, and whoever listens here needs no wire
        ("smtp://localhost", None, False),
        ("smtp://[::1]:25", None, False),
        ("smtp://127.0.0.1:2525?starttls=true", True, False),
        ("smtp://mail.example.com", True, False),
        ("smtp://10.0.0.7:25", True, False),
        ("smtp://localhost.example.com", True, False),
        ("smtp://user:pw@127.0.0.1", True, False),
        ("smtp://user@localhost", True, False),
        ("smtp://mail.example.com?starttls=false", False, False),  # asked for by name
        ("smtp://user:pw@127.0.0.1?starttls=false", False, False),
        ("smtps://mail.example.com", False, True),
        ("smtps://user:pw@mail.example.com:465", False, True),
    ],
)
def test_tls_is_implied_where_somebody_could_listen(url: str, start_tls: bool | None, use_tls: bool) -> None:
    keywords = options(SmtpSettings(url=url))
    assert (keywords["start_tls"], keywords["use_tls"]) == (start_tls, use_tls)


SECRET = st.text(st.sampled_from("s3cret@:/?#%[] ä"), min_size=6).filter(lambda text: len(set(text)) > 3)


@given(SECRET, st.sampled_from(["smtp://user:{}@host:25", "smtp://user:{}@host", "smtps://{}@host:4", "user:{}@host", "smtp://h:{}"]))
def test_no_message_quotes_the_password(secret: str, shape: str) -> None:
    """Pasted as it is, or escaped as it should be."""
    for text in (secret, quote(secret, safe="")):
        try:
            options(SmtpSettings(url=shape.format(text)))
        except SettingsError as error:
            assert text not in str(error) and secret not in str(error)
    whole = f"smtp://user:{quote(secret, safe='')}@mail.example.com:25"
    assert server_of(whole) == "smtp://mail.example.com:25"


async def test_no_credentials_in_clear_where_starttls_was_taken_out_of_the_greeting() -> None:
    heard: list[bytes] = []
    ended = asyncio.Event()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        while line := await reader.readline():
            heard.append(line)
            writer.write(b"250-mail\r\n250 AUTH PLAIN LOGIN\r\n" if line.upper().startswith(b"EHLO") else b"250 ok\r\n")
        writer.close()
        await writer.wait_closed()
        ended.set()

    server: Any = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mailer = Mailer(SmtpSettings(url=f"smtp://user:s3cret@127.0.0.1:{port}", connections=1))
    try:
        assert not await mailer.ready()
    finally:
        await mailer.close()
        await ended.wait()
        server.close()
        await server.wait_closed()
    assert heard and not any(line.upper().startswith((b"AUTH", b"MAIL")) for line in heard)
