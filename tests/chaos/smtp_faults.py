"""Mail servers in a mood: each misbehaves with some mails at their first try, and keeps what it takes."""

from __future__ import annotations

import asyncio
import collections
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import Envelope

from mailtide.local.mail_server import StoringHandler

EVERY = 4  # customers for whom the server is in its mood: one in so many


class Moody(StoringHandler):
    """``mood`` of RCPT or DATA for one recipient in four; ``tries`` counts what came to that step."""

    step, tempers = "DATA", 1  # how often it is in its mood for one mail

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tries: collections.Counter[str] = collections.Counter()
        self.moods = 0

    async def mood(self, server: Any, session: Any, envelope: Envelope) -> str | None:
        """An answer that ends the step; None to go on."""
        raise NotImplementedError

    async def _meet(self, step: str, name: str, server: Any, session: Any, envelope: Envelope) -> str | None:
        if step != self.step or sum(name.encode()) % EVERY:
            return None
        self.tries[name] += 1
        if self.tries[name] > self.tempers:
            return None
        self.moods += 1
        return await self.mood(server, session, envelope)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, _options: Any) -> str:
        answer = await self._meet("RCPT", address, server, session, envelope)
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        answer = await self._meet("DATA", envelope.rcpt_tos[0], server, session, envelope)
        return answer or await super().handle_DATA(server, session, envelope)


def says(code: int, step: str, tempers: int = 2) -> type[Moody]:
    """A server that answers so."""

    class Says(Moody):
        async def mood(self, _server: Any, _session: Any, _envelope: Envelope) -> str:
            return f"{code} not now"

    Says.step, Says.tempers = step, tempers
    return Says


def hangs(step: str) -> type[Moody]:
    """A server that takes the words and never answers; at DATA it has kept the mail."""

    class Hangs(Moody):
        async def mood(self, server: Any, session: Any, envelope: Envelope) -> str:
            if step == "DATA":
                await StoringHandler.handle_DATA(self, server, session, envelope)
            await asyncio.sleep(3600)
            return "250 too late"

    Hangs.step = step
    return Hangs


def drops(step: str, keeps: bool) -> type[Moody]:
    """A server that resets the connection in the middle of a step, with the mail kept or not."""

    class Drops(Moody):
        async def mood(self, server: Any, session: Any, envelope: Envelope) -> str:
            if keeps:
                await StoringHandler.handle_DATA(self, server, session, envelope)
            server.transport.abort()
            return "250 nobody hears this"

    Drops.step = step
    return Drops
