"""A mail server of one's own that prints what it gets: to look at mails, or as a start for a gateway to somewhere else.

    python examples/own_mail_server.py 2525
    MAILTIDE_SMTP=smtp://127.0.0.1:2525 mailtide up

The port 0 takes a free one; the first line says which. All that it needs is ``pip install aiosmtpd``: nothing here imports Mailtide.

What Mailtide makes of an answer: 250 is sent, a 4xx is tried again until the mail's use-by time, a 5xx is final (``failed``, with the
code). No answer at all after DATA is ``unknown``, and never sent again by itself. ``X-Mailtide-Intent`` names the intent, the same
one on ``email.deliveries``; ``Message-ID`` comes from it.
"""

from __future__ import annotations

import asyncio
import sys
from email import message_from_bytes, policy
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

HEADERS = ("From", "To", "Subject", "Message-ID", "X-Mailtide-Intent", "List-Unsubscribe")


class Printer:
    """aiosmtpd's handler: ``handle_DATA`` answers the sender once it has the mail."""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:
        """Print one mail: the headers that matter, and its text."""
        mail = message_from_bytes(envelope.original_content or b"", policy=policy.default)
        for name in HEADERS:
            if mail[name]:
                print(f"{name}: {mail[name]}")
        body = mail.get_body(("plain",))
        print("", body.get_content().strip() if body else "(no text)", "-" * 72, sep="\n", flush=True)
        return "250 printed"


async def serve(port: int) -> None:
    """Listen until the process is ended."""
    loop = asyncio.get_running_loop()
    handler = Printer()
    server = await loop.create_server(lambda: SMTP(handler, enable_SMTPUTF8=True), "127.0.0.1", port)
    print(f"MAILTIDE_SMTP=smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 2525))
