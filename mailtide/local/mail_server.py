"""The local mail server: takes every mail and keeps it as ``<home>/outbox/<message id>.eml``. It delivers to nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

import msgspec
from aiosmtpd.smtp import SMTP, Envelope

from mailtide.local import endpoints
from schemas.config import Settings
from schemas.errors import SettingsError

MOST_BYTES = 10 << 20  # of one mail
_UNSAFE = re.compile(r"[^A-Za-z0-9@._+=-]")


class StoringHandler:
    """aiosmtpd's handler: a mail is answered with 250 once its file stands whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:
        """Keep one mail; a disk that can't take it is a reason to try again, not to lose it."""
        content = envelope.original_content or b""
        try:
            keep(self.folder, content)
        except OSError as error:
            return f"452 can't keep it: {os.strerror(error.errno or 0)}"
        return "250 kept"


def keep(folder: Path, content: bytes) -> Path:
    """Write one mail under its Message-ID, whole or not at all; a second with the same id gets ``.2``: nothing is overwritten."""
    given = str(BytesHeaderParser().parsebytes(content).get("Message-ID", ""))
    stem = _UNSAFE.sub("_", given.strip().strip("<>")).lstrip(".")[:200] or "no-message-id"
    draft = folder / f".{os.getpid()}.{threading.get_ident()}.new"
    draft.write_bytes(content)
    try:
        for number in range(1, 10_000):
            target = folder / (f"{stem}.eml" if number == 1 else f"{stem}.{number}.eml")
            with contextlib.suppress(FileExistsError):
                os.link(draft, target)
                return target
    finally:
        draft.unlink()
    raise FileExistsError(17, "ten thousand mails with one id", stem)


class LocalMailServer:
    """A server in a thread of its own. ``port``: the one it listens on, on loopback."""

    def __init__(self, folder: Path, port: int, handler: Any = None) -> None:
        self.folder, self.port = folder, port
        self._handler = handler or StoringHandler(folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="outbox", daemon=True)
        self._server: asyncio.Server | None = None

    def start(self) -> LocalMailServer:
        """Listen; SettingsError where the port is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except OSError as error:
            self._end()
            raise SettingsError(
                f"smtp.port = {self.port} can't be listened on ({error.strerror}): choose another, or 0 for a free one"
            ) from error
        return self

    async def _listen(self) -> None:
        def protocol() -> asyncio.BaseProtocol:
            made: asyncio.BaseProtocol = SMTP(
                self._handler, loop=self._loop, hostname="localhost", ident="Mailtide", data_size_limit=MOST_BYTES, enable_SMTPUTF8=True
            )
            return made

        self._server = await self._loop.create_server(protocol, "127.0.0.1", self.port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Close the port and every dialogue."""
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._close(self._server), self._loop).result(10)
            self._server = None
            self._end()

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def found(settings: Settings) -> Settings:
    """With the mail server that `mailtide up` runs in this home, where the settings name none; as they are where there is neither."""
    url = settings.smtp.url or endpoints.answering(Path(settings.home), "smtp")
    return msgspec.structs.replace(settings, smtp=msgspec.structs.replace(settings.smtp, url=url))


def start(settings: Settings) -> LocalMailServer:
    """The running server of these settings; stop it with ``.stop()``."""
    return LocalMailServer(Path(settings.home) / "outbox", settings.smtp.port).start()
