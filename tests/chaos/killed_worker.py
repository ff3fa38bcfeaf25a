"""A Mailtide process that comes to harm at a chosen place of the real code: ``python -m tests.chaos.killed_worker worker --stages …``.

``CHAOS_AT="<moment> <place>:<n>"`` ("after store:2"): at its n-th visit there the process is killed with signal 9.
``CHAOS_HARM=hang`` lets the task that came there wait for ever instead, ``block`` the whole event loop.
``CHAOS_ONCE`` names a file that is made when the trap closes; while it is there, none is laid.
``CHAOS_CLOCK`` names a file: the seconds in it are added to this process's wall clock whenever it is read.
``CHAOS_BEHIND``: bytes that intake's store may lag behind the changelog; a small shop makes no 4 MB of states.
Nothing of this is compiled into Mailtide.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Visit = Callable[[], Any]  # gives an awaitable where the visitor is to wait

CALLS = {  # "before" it begins, "after" it returned
    "output": ("streams.intake.partition", "Partition", "flush"),
    "store": ("streams.intake.store", "Store", "write"),
    "batch": ("streams.intake.stage", "Intake", "handle"),
    "draft": ("streams.writer.stage", "WriterStage", "_send"),
    "DATA": ("streams.sender.smtp", "Mailer", "_data"),
    "artifact": ("training.artifacts", "", "put"),
    "release": ("training.rollout.releases", "", "publish"),
}
TRANSACTIONS = {  # "before" it begins, "amid": all records acknowledged, not committed; "after" its commit
    "changelog": ("streams.intake.partition", "Partition", "_land"),
    "claim": ("streams.sender.dispatch", "Dispatch", "_claim"),
    "outcome": ("streams.sender.draft_queue", "DraftQueue", "write"),
}
SAME = {"after output": "before changelog"}  # the changelog's transaction begins once the outputs are acknowledged


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def block() -> None:
    time.sleep(1e6)


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


def nth(harm: Visit, number: int) -> Visit:
    """Harmless until the n-th visit."""
    left = [number]

    def visit() -> Any:
        left[0] -= 1
        return harm() if left[0] == 0 else None

    return visit


async def _wait(visit: Visit | None) -> None:
    if visit is not None and (waiting := visit()) is not None:
        await waiting


def wrapped(function: Any, before: Visit | None = None, after: Visit | None = None) -> Any:
    """``function`` with these visits around it."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def waiting(*args: Any, **named: Any) -> Any:
            await _wait(before)
            found = await function(*args, **named)
            await _wait(after)
            return found

        return waiting

    @functools.wraps(function)
    def plain(*args: Any, **named: Any) -> Any:
        if before is not None:
            before()
        found = function(*args, **named)
        if after is not None:
            after()
        return found

    return plain


def _holder(module: str, owner: str) -> Any:
    found = importlib.import_module(module)
    return getattr(found, owner) if owner else found


def arm(where: str, harm: Visit) -> None:
    """Lay the trap; an unknown or moved place is an error, not a trap that never closes."""
    place, _, number = where.partition(":")
    moment, point = SAME.get(place, place).split(" ")
    visit = nth(harm, int(number or 1))
    if point in TRANSACTIONS:
        _transaction(*TRANSACTIONS[point], moment, visit)
        return
    module, owner, name = CALLS[point]
    holder = _holder(module, owner)
    setattr(holder, name, wrapped(getattr(holder, name), **{moment: visit}))


def _transaction(module: str, owner: str, name: str, moment: str, visit: Visit) -> None:
    """Visits at the steps of the transactions that run inside of this one function."""
    from aiokafka import AIOKafkaProducer

    inside, holder = contextvars.ContextVar("inside", default=False), _holder(module, owner)
    real = getattr(holder, name)

    @functools.wraps(real)
    async def entered(*args: Any, **named: Any) -> Any:
        inside.set(True)
        try:
            return await real(*args, **named)
        finally:
            inside.set(False)

    def step(function: Any, flush: bool = False, late: bool = False) -> Any:
        async def taken(self: Any) -> None:
            if inside.get() and not late:
                if flush:
                    await self.flush()
                await _wait(visit)
            await function(self)
            if inside.get() and late:
                await _wait(visit)

        return taken

    setattr(holder, name, entered)
    if moment == "before":
        AIOKafkaProducer.begin_transaction = step(AIOKafkaProducer.begin_transaction)
    else:
        AIOKafkaProducer.commit_transaction = step(AIOKafkaProducer.commit_transaction, flush=True, late=moment == "after")


def shift(file: Path) -> None:
    """Let this process's wall clock be off by the seconds that ``file`` says from now on."""
    real = time.time

    def bent() -> float:
        try:
            return real() + float(file.read_text() or 0)
        except (OSError, ValueError):
            return real()

    time.time = bent


def main() -> None:
    if clock := os.environ.get("CHAOS_CLOCK"):
        shift(Path(clock))
    if behind := os.environ.get("CHAOS_BEHIND"):
        importlib.import_module("streams.intake.states").BEHIND = int(behind)
    where, once = os.environ.get("CHAOS_AT"), os.environ.get("CHAOS_ONCE")
    if where and not (once and Path(once).exists()):
        harm = {"kill": kill, "block": block, "hang": hang}[os.environ.get("CHAOS_HARM", "kill")]

        def closes() -> Any:
            if once:
                Path(once).touch()
            return harm()

        arm(where, closes)
    if sys.argv[1:] == ["publish"]:
        from tests.chaos.publisher import main as run
    else:
        from mailtide.cli.main import main as run
    run()


if __name__ == "__main__":
    main()
