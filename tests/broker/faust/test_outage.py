"""A Kafka that goes away while a stage runs: said once, waited for, said once that it is back."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError

from schemas.config import Settings, SmtpSettings
from streams.sender import stage
from tests.broker.faust.test_faust_defects import Bench, until
from transport import availability

pytestmark = pytest.mark.broker


class Away:
    """Questions to the broker fail while ``away``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.asked, asks = False, 0, AIOKafkaConsumer.end_offsets

        async def end_offsets(consumer: AIOKafkaConsumer, places: Any) -> Any:
            self.asked += 1
            if self.away:
                raise KafkaConnectionError("nobody there")
            return await asks(consumer, places)

        monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", end_offsets)
        monkeypatch.setattr(availability, "MEASURE", 0.5)

    async def twice(self) -> None:
        begun = self.asked
        await until(lambda: self.asked > begun + 2)

    async def goes_and_comes(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """What was told of it."""
        with caplog.at_level(logging.INFO, "transport.availability"):
            await self.twice()
            assert told(caplog) == []
            self.away = True
            await self.twice()
            assert len(told(caplog)) == 1
            self.away = False
            await until(lambda: len(told(caplog)) > 1)
            await self.twice()
        return told(caplog)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "transport.availability"]


async def test_a_stage_on_faust_says_so_once(settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    away, bench = Away(monkeypatch), Bench(settings)
    await bench.app.start()
    try:
        (await bench.batch(0)).done()
        gone, back = await away.goes_and_comes(caplog)
        assert "doesn't answer" in gone and back == "Kafka answers again"
    finally:
        await bench.app.stop()


async def test_the_sender_says_so_once(settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    away, stop = Away(monkeypatch), asyncio.Event()
    ready = msgspec.structs.replace(settings, smtp=SmtpSettings(url="smtp://127.0.0.1:1"))
    task = asyncio.create_task(stage.serve(ready, stop))
    try:
        await until(lambda: away.asked > 0 or task.done())
        gone, back = await away.goes_and_comes(caplog)
        assert "doesn't answer" in gone and back == "Kafka answers again"
    finally:
        stop.set()
        await task
