"""``<home>/run/endpoints.json``: which ports are in use, for people and for other processes."""

from __future__ import annotations

import fcntl
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ANSWER_SECONDS = 1.0  # a listener on this machine takes a connection at once, or its backlog is full


def read(home: Path) -> dict[str, Any]:
    """What stands there now; empty where there is none."""
    try:
        return dict(json.loads((home / "run" / "endpoints.json").read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def put(home: Path, **named: Any) -> None:
    """Add or replace endpoints."""
    _change(home, lambda known: known | named)


@contextmanager
def listed(home: Path, name: str, address: str) -> Iterator[None]:
    """Name an endpoint as long as the block runs.

    On leaving, what it replaced stands there again if somebody still answers there, and another's address that replaced it stays.
    """
    before = read(home).get(name)
    put(home, **{name: address})
    try:
        yield
    finally:
        again = {name: before} if before not in (None, address) and _answers(str(before)) else {}

        def leave(known: dict[str, Any]) -> dict[str, Any]:
            return {key: at for key, at in known.items() if key != name} | again if known.get(name) == address else known

        _change(home, leave)


def answering(home: Path, name: str) -> str:
    """The address that stands there, if somebody answers at it; else ""."""
    address = str(read(home).get(name, ""))
    return address if address and _answers(address) else ""


def sweep(home: Path) -> None:
    """Take out what a killed process left: the broker, and all where nobody answers. For whoever holds the home's broker alone."""
    if read(home):
        _change(home, lambda known: {name: at for name, at in known.items() if name != "kafka" and _answers(str(at))})


def _answers(address: str) -> bool:
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((place.hostname or "", place.port or 0), ANSWER_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _change(home: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    folder = home / "run"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "endpoints.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh = folder / "endpoints.new"
        fresh.write_text(json.dumps(change(read(home)), indent=2, sort_keys=True) + "\n")
        fresh.replace(folder / "endpoints.json")
