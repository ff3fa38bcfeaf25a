"""A worker killed after Kafka has taken an intent, before its transaction's commit: the intent was never there."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import msgspec
import pytest

from schemas.config import Settings
from schemas.mail import iso
from schemas.topics import INTENTS
from tests.broker.intake.test_intake import caught_up, event, everything, home, publish, serving, states
from tests.paths import ROOT

pytestmark = [pytest.mark.broker, pytest.mark.chaos]

# Everything of the flush is with the broker and acknowledged; only the commit is missing.
KILLED = """
import asyncio, os, signal, sys
import msgspec
from aiokafka import AIOKafkaProducer
from schemas.config import Settings
from streams.intake.partition import Partition
from tests.broker.intake import intake_double

intake_double.DELAY = 0.3
land, commit, flushes = Partition._land, AIOKafkaProducer.commit_transaction, []

async def noted(self, states, clock, beside, *rest):
    flushes.append(any("email.intents" in topic for topic in beside))
    await land(self, states, clock, beside, *rest)

async def killed(self):
    await self.flush()
    if flushes[-1]:
        os.kill(os.getpid(), signal.SIGKILL)
    await commit(self)

Partition._land, AIOKafkaProducer.commit_transaction = noted, killed
asyncio.run(intake_double.main(msgspec.json.decode(sys.argv[1], type=Settings), "w0"))
"""


async def test_a_mail_that_was_called_off_before_its_intent_was_committed_has_no_intent(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, session_timeout=6.0))
    order = event(0, "c1", event="Order Completed", timestamp=iso(time.time()))
    await publish(settings, [(b"c1", order, home("c1"))])
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, msgspec.json.encode(settings).decode()), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert await asyncio.wait_for(worker.wait(), 60) == -signal.SIGKILL
    assert await everything(settings, INTENTS, isolation="read_uncommitted"), "it was killed before Kafka had the intent"

    await publish(settings, [(b"c1", event(1, "c1", event="Unsubscribed", timestamp=iso(time.time())), home("c1"))])
    monkeypatch.setattr("streams.intake.stage.TICK", 3600.0)  # the event comes before the timer that is due by now
    async with serving(settings, "w1"):
        async with asyncio.timeout(60):
            while not await caught_up(settings):
                await asyncio.sleep(0.05)
    assert (await states(settings))["c1"]["timer"] is None
    assert await everything(settings, INTENTS) == []
