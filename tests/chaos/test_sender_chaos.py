"""Senders that die, sleep and come and go: no mail twice, no intent without its one outcome."""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mailtide.local.mail_server import LocalMailServer, StoringHandler
from schemas.config import SendingSettings, Settings, SmtpSettings, Trigger
from schemas.mail import Delivery, Draft, Facts, Intent, Source, Standing, encode, intent_id, iso
from schemas.topics import DELIVERIES, DRAFTS, GATE
from streams.profiles import Profiles
from transport import blocking
from transport.clients import partition_of, producer

pytestmark = [pytest.mark.broker, pytest.mark.chaos]

TEXT = (
    "Subject: Welcome to {shop_name}\nPreheader: We're glad you're here.\n\nHi {first_name},\n\n"
    "It's good to have you with us. If you need a hand with anything, just write to us and a person will answer. "
    "Take your time to look around.\n\nLook around the shop: {cta_link}"
)
PROGRAM = (
    "import asyncio, sys, msgspec; from schemas.config import Settings; from streams.sender import stage as sender\n"
    "asyncio.run(sender.serve(msgspec.json.decode(sys.stdin.read(), type=Settings), asyncio.Event(), sys.argv[1]))"
)


class Slow(StoringHandler):
    """Answers after a while, so that a signal meets mails on their way."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        answer = await super().handle_DATA(server, session, envelope)
        await asyncio.sleep(0.03)
        return answer


class Fleet:
    """Sender processes on one home, and what the mail server got of them."""

    def __init__(self, settings: Settings) -> None:
        self.folder = Path(settings.home) / "outbox"
        self.server = LocalMailServer(self.folder, 0, Slow(self.folder)).start()
        self.settings = msgspec.structs.replace(
            settings,
            kafka=msgspec.structs.replace(settings.kafka, session_timeout=6.0),
            smtp=SmtpSettings(url=f"smtp://127.0.0.1:{self.server.port}"),
            sending=SendingSettings(holdout=0.0, quiet_start="00:00", quiet_end="00:00"),
            trigger=(Trigger("welcome", on="Signed Up"),),
        )
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        made = subprocess.Popen([sys.executable, "-c", PROGRAM, f"w{len(self.processes)}"], stdin=subprocess.PIPE)
        made.stdin.write(msgspec.json.encode(self.settings))  # type: ignore[union-attr]
        made.stdin.close()  # type: ignore[union-attr]
        self.processes.append(made)
        return made

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
        self.server.stop()

    async def publish(self, names: list[str]) -> None:
        store = Profiles.open(self.settings)
        store.put_many([(name, {"email": f"{name}@customers.example.com"}, 0.0) for name in names])
        store.close()
        out, now = await producer(self.settings.kafka, linger_ms=20), time.time()
        sent = []
        for name in names:
            number = partition_of(name.encode(), 2)
            identity = intent_id(name, "welcome", "1")
            due, expires = iso(now), iso(now + 3600)
            intent = Intent(identity, name, "welcome", "1", due, expires, "c0", Facts(), Source("e", 0, 0), due)
            draft = Draft(intent, TEXT, "template", "guided", "base", 1)
            for topic, record in ((GATE, Standing(name, True, True)), (DRAFTS, draft)):
                sent.append(await out.send(self.settings.kafka.topic(topic), encode(record), name.encode(), number))
        await asyncio.gather(*sent)
        await out.stop()

    def deliveries(self) -> list[Delivery]:
        return [msgspec.json.decode(record.value, type=Delivery) for record in blocking.records(self.settings.kafka, DELIVERIES)]

    async def until(self, found: Any, seconds: float = 90.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := await asyncio.to_thread(found)):
            assert time.monotonic() < deadline, "the condition did not come true in time"
            await asyncio.sleep(0.05)
        return value

    def mails(self) -> int:
        return sum(1 for file in self.folder.glob("*.eml"))

    async def check(self, count: int) -> collections.Counter[str]:
        """All ended, each once; none was handed over twice; what is ``sent`` was handed over."""
        await self.until(lambda: len({delivery.intent_id for delivery in self.deliveries()}) >= count)
        ends = self.deliveries()
        assert max(collections.Counter(delivery.intent_id for delivery in ends).values()) == 1
        assert not list(self.folder.glob("*.2.eml"))
        kept = {file.stem for file in self.folder.glob("*.eml")}
        assert {delivery.message_id.strip("<>") for delivery in ends if delivery.status == "sent"} <= kept
        return collections.Counter(delivery.status for delivery in ends)


@pytest.fixture
def fleet(settings: Settings) -> Any:
    made = Fleet(settings)
    yield made
    made.close()


async def test_killed_again_and_again(fleet: Fleet) -> None:
    await fleet.publish([f"c{i}" for i in range(240)])
    for goal in (30, 90):
        process = fleet.start()
        await fleet.until(lambda goal=goal: fleet.mails() >= goal)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    fleet.start()
    ends = await fleet.check(240)
    assert set(ends) <= {"sent", "unknown"}
    assert ends["unknown"] <= 2 * 2 * 64  # what two kills can catch between claim and answer, on two partitions


async def test_one_that_slept_sends_nothing_twice(fleet: Fleet) -> None:
    """It is stopped with claims in hand, loses its partitions, and wakes up believing that they are its own."""
    await fleet.publish([f"c{i}" for i in range(240)])
    sleeper = fleet.start()
    await fleet.until(lambda: fleet.mails() >= 30)
    os.kill(sleeper.pid, signal.SIGSTOP)
    fleet.start()
    await fleet.check(240)
    os.kill(sleeper.pid, signal.SIGCONT)
    await fleet.publish([f"d{i}" for i in range(40)])
    await fleet.check(280)


async def test_workers_that_come_and_go(fleet: Fleet) -> None:
    await fleet.publish([f"c{i}" for i in range(300)])
    fleet.start()
    await fleet.until(lambda: fleet.mails() >= 30)
    second = fleet.start()
    await fleet.until(lambda: fleet.mails() >= 150)
    os.kill(second.pid, signal.SIGKILL)
    ends = await fleet.check(300)
    assert ends["sent"] >= 300 - 2 * 64
