"""One stream worker: the stages it was given, in one event loop, until SIGTERM."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mailtide.local import broker, mail_server
from mailtide.process import failure_reason, logs, shutdown
from mailtide.services import health, watchdog
from schemas.config import Settings
from schemas.errors import SettingsError
from transport import topics

STAGES = ("intake", "clusters", "writer", "sender")
Serve = Callable[[Settings, asyncio.Event, str], Awaitable[None]]


def stages(text: str) -> list[str]:
    """The stages named in ``text``; SettingsError on one that isn't."""
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    for name in chosen:
        if name not in STAGES:
            raise SettingsError(f"--stages: {name!r} is no stage; choose among {','.join(STAGES)}")
    if not chosen:
        raise SettingsError(f"--stages is empty; choose among {','.join(STAGES)}")
    return chosen


def _serve(name: str) -> Serve:
    # Imported one by one: a writer needs no Faust, an intake no ONNX.
    if name == "intake":
        from streams.intake.stage import serve
    elif name == "clusters":
        from streams.clusters.stage import serve
    elif name == "writer":
        from streams.writer.stage import serve
    else:
        from streams.sender.stage import serve
    return serve


@contextmanager
def identity(home: Path) -> Iterator[str]:
    """The first free worker id of this home ("w0", "w1", …), held as long as the process lives: local state hangs on it."""
    folder = home / "run"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        with (folder / f"w{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield f"w{number}"
            return
    raise SettingsError(f"{home}: more than 1,000 workers share this home; give each machine its own MAILTIDE_HOME")


async def run(settings: Settings, chosen: Sequence[str], worker_id: str) -> None:
    """Serve until SIGTERM or SIGINT; a stage that fails ends the worker with its error, so that a supervisor starts it afresh."""
    from mailtide.process import garbage_collection
    from streams.metrics import STAGES

    # Before the signals are ours: they take seconds, in which there is nothing to drain and an end may come at once.
    serving = {name: _serve(name) for name in chosen}
    garbage_collection.settle()
    halt, asked = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        asked.set()
        halt.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ask)
    pulse = health.Pulse()
    beating = asyncio.create_task(pulse.run())
    with (
        watchdog.watching(settings, worker_id, pulse),
        shutdown.deadline(asked, "worker"),
        health.serving(settings, f"worker-{worker_id}", pulse.checks, lambda: STAGES.checks(chosen)),
    ):
        tasks = [asyncio.create_task(_guard(serve(settings, halt, worker_id), halt), name=name) for name, serve in serving.items()]
        await asyncio.gather(*tasks)
    beating.cancel()


async def _guard(stage: Awaitable[None], halt: asyncio.Event) -> None:
    try:
        await stage
    finally:
        halt.set()  # one stage down, all down: half a worker would look alive


class Failure(threading.Event):
    """Set when a stage has failed. ``words``: the line to say of it."""

    words = ""


async def _or_say_so(serving: Awaitable[None], failure: Failure) -> None:
    """``asyncio.run`` waits for every task that it cancels, however long one takes: a failed worker must not wait with it."""
    try:
        await serving
    except Exception as error:
        failure.words = f"mailtide: {failure_reason.words(error) or f'{type(error).__name__}: {error}'}\n"
        failure.set()
        raise


def main(settings: Settings, text: str) -> None:
    """Block until told to stop."""
    chosen = stages(text)
    logs.outages_told()
    with broker.running(settings) as ready, identity(Path(ready.home)) as worker_id:
        topics.wait(ready)  # the stages' clients wait for a missing one without a word
        failure = Failure()
        with shutdown.deadline(failure, "worker", code=1, last=lambda: failure.words):
            asyncio.run(_or_say_so(run(mail_server.found(ready), chosen, worker_id), failure))
