"""``/health/live``, ``/health/ready`` and ``/metrics`` of one service, over plain asyncio."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mailtide import endpoints
from schemas.config import Settings

LONGEST_REQUEST = 8192  # bytes


async def start(settings: Settings, name: str) -> asyncio.Server:
    """Listen on ``health_port`` (0: a free one) and write the address into endpoints.json under ``name``."""
    server = await asyncio.start_server(_answer, "127.0.0.1", settings.health_port, limit=LONGEST_REQUEST)
    port = server.sockets[0].getsockname()[1]
    endpoints.put(Path(settings.home), **{name: f"http://127.0.0.1:{port}"})
    return server


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        line = await asyncio.wait_for(reader.readline(), 5)
        path = [*line.split(b" "), b"", b""][1]
        status, kind, body = "200 OK", "text/plain; charset=utf-8", b"ok\n"
        if path == b"/metrics":
            kind, body = CONTENT_TYPE_LATEST, generate_latest(REGISTRY)
        elif path not in (b"/health/live", b"/health/ready"):
            status, body = "404 Not Found", b"not found\n"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        )
        await writer.drain()
    except (TimeoutError, ConnectionError, ValueError):
        pass  # a probe that goes away is no news
    finally:
        writer.close()
