"""The stage on a real Kafka: every intent gets one draft, releases change hands while it runs, offsets follow the drafts."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from models.mail import guard
from models.mail.slots import ALWAYS
from models.writer import Guided, fingerprint
from models.writer.base import HOUSE
from schemas.config import Settings, WriterSettings
from schemas.mail import Draft, Facts, Intent, Product, Source, decoder, encode, iso
from schemas.release import Cluster, Release, Snapshot
from schemas.topics import CLUSTERS, DRAFTS, INTENTS, RELEASES
from streams.progress import work
from streams.writer import drafting, stage
from tests.tiny_model import lora, tiny

pytestmark = pytest.mark.broker


@pytest.fixture
def tiny_settings(settings: Settings) -> Settings:
    w = WriterSettings(base_model=str(tiny()), rows=4, threads=1, pool_size=2, pool_oversample=1, fresh_share=0.0, explore=0.2)
    return msgspec.structs.replace(settings, writer=w)


def intent(number: int, trigger: str = "welcome", expires: float = 3600.0, **facts: object) -> Intent:
    now = time.time()
    given = Facts(products=(Product("p1", "Harbour Blend", "coffee", 7.5, "USD", "coffee_tea"),), **facts)  # type: ignore[arg-type]
    stamp = iso(now)
    return Intent(f"i{number}", f"customer {number}", trigger, "o", stamp, iso(now + expires), "c1", given, Source("t", 0, 0), stamp)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(stage.serve(settings, stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)


class Reader:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.drafts: list[Draft] = []

    async def __aenter__(self) -> Reader:
        self.consumer = AIOKafkaConsumer(
            self.settings.kafka.topic(DRAFTS), bootstrap_servers=self.settings.kafka.bootstrap, auto_offset_reset="earliest"
        )
        await self.consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.consumer.stop()

    async def until(self, done: Callable[[list[Draft]], bool], within: float = 90.0) -> list[Draft]:
        async with asyncio.timeout(within):
            while not done(self.drafts):
                for records in (await self.consumer.getmany(timeout_ms=200)).values():
                    self.drafts += [decoder(Draft).decode(r.value) for r in records]
        return self.drafts


@asynccontextmanager
async def publishing(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def put(producer: AIOKafkaProducer, settings: Settings, *intents: Intent) -> None:
    for one in intents:
        await producer.send_and_wait(settings.kafka.topic(INTENTS), encode(one), one.customer.encode())


async def test_every_intent_gets_a_draft_and_a_release_serves_while_it_runs(tiny_settings: Settings, tmp_path: Path) -> None:
    base = fingerprint(tiny(), HOUSE)
    snapshot = Snapshot("s", 1, "", (), (), (), (Cluster("c1", 9, "big baskets", (), {}),), 1)
    file = lora(tmp_path / "a.safetensors", base, scale=0.5)
    good = Release("r1", "c1", 1, str(file), hashlib.sha256(file.read_bytes()).hexdigest(), base, 4, "")
    bad = msgspec.structs.replace(good, release_id="r2", epoch=2, sha256="0" * 64)
    async with publishing(tiny_settings) as out, Reader(tiny_settings) as reader:
        await out.send_and_wait(tiny_settings.kafka.topic(CLUSTERS), encode(snapshot), b"s")
        expired, unknown = intent(100, expires=-60.0), intent(101, trigger="no_such_trigger")
        refused = msgspec.structs.replace(intent(102), foreseen="no_consent")
        await put(out, tiny_settings, *(intent(n) for n in range(12)), expired, unknown, refused)
        async with serving(tiny_settings) as task:
            drafts = await reader.until(lambda d: len(d) >= 15 or task.done())
            by_id = {d.intent.intent_id: d for d in drafts}
            assert len(by_id) == len(drafts) == 15
            assert by_id["i100"].origin == "template" and by_id["i100"].text and by_id["i101"].text == ""
            assert (by_id["i102"].origin, by_id["i102"].guard) == ("template", {"writer": "not written: no_consent"})
            normal = [by_id[f"i{n}"] for n in range(12)]
            assert {d.origin for d in normal} == {"generated", "pool"}
            for draft in normal:
                assert draft.release == "base" and guard.passes(draft.guard) and next(c.move for c in draft.choices) == "subject"
                assert guard.passes(guard.check(draft.text, {"product_1", "price_1", "category"} | ALWAYS, "welcome"))
            pooled = [d for d in normal if d.origin == "pool"]
            assert len({(d.intent.customer, d.text) for d in pooled}) == len(pooled)
            await out.send_and_wait(tiny_settings.kafka.topic(RELEASES), encode(good), b"c1")
            await out.send_and_wait(tiny_settings.kafka.topic(RELEASES), encode(bad), b"c1")
            number = 200
            while not any(d.release == "r1" for d in reader.drafts):
                await put(out, tiny_settings, intent(number))
                number += 1
                await reader.until(lambda d, want=number - 200 + 15: len(d) >= want)  # type: ignore[misc]
            assert stage.stats()["generated"] > 0
        assert (Path(tiny_settings.home) / "run" / "writer-w0.json").is_file()
        before = len(reader.drafts)
        await put(out, tiny_settings, intent(900))
        async with serving(tiny_settings):  # offsets were committed: only the new one is written
            await reader.until(lambda d: len(d) > before)
    assert [d.intent.intent_id for d in reader.drafts[before:]] == ["i900"]
    assert reader.drafts[-1].release == "r1"


async def test_a_queue_that_is_too_long_falls_back_by_urgency(tiny_settings: Settings) -> None:
    quick = msgspec.structs.replace(tiny_settings, writer=msgspec.structs.replace(tiny_settings.writer, queue_seconds=0.9, pool_size=50))
    async with publishing(quick) as out, Reader(quick) as reader:
        urgent = [msgspec.structs.replace(intent(n), priority=0) for n in range(3)]
        await put(out, quick, *(intent(n) for n in range(100, 160)), *urgent)
        async with serving(quick) as task:
            drafts = await reader.until(lambda d: len(d) >= 63 or task.done())
    assert len({d.intent.intent_id for d in drafts}) == 63
    assert any(d.origin == "template" and d.guard.get("writer") == "queue too long" for d in drafts)
    assert all(d.text for d in drafts)


async def test_a_mail_that_takes_long_is_no_standstill(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine the first mail takes longer than a stuck worker is given; the model's runs show that it gets on."""
    monkeypatch.setattr(drafting, "BEAT", 0.05)
    going, take = threading.Event(), Guided.take

    def slowly(self: Guided, ids: Any, logits: Any) -> list[int]:
        going.wait(0.3)
        return take(self, ids, logits)

    monkeypatch.setattr(Guided, "take", slowly)

    def figure() -> int:
        return sum(one.figure for name, one in work().items() if "mailtide-writer" in name and not name.endswith("commits"))

    try:
        async with publishing(tiny_settings) as out, Reader(tiny_settings) as reader, serving(tiny_settings):
            await put(out, tiny_settings, intent(1))
            async with asyncio.timeout(60):
                while not stage._serving or not stage._serving[-1].writing:
                    await asyncio.sleep(0.02)
                begun = figure()
                while figure() < begun + 3:
                    assert not reader.drafts
                    await asyncio.sleep(0.02)
            assert stage.stats()["generated"] == 0
            going.set()
            await reader.until(lambda d: len(d) == 1)
    finally:
        going.set()


async def test_counters_that_cannot_be_written_stop_no_mail(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a full disk; said once, and again after they could be written."""
    monkeypatch.setattr(stage, "STATS_EVERY", 0.0)
    run = Path(tiny_settings.home) / "run"
    run.parent.mkdir(parents=True, exist_ok=True)
    run.write_text("in the way")
    async with publishing(tiny_settings) as out, Reader(tiny_settings) as reader, serving(tiny_settings) as task:
        for number in range(5):
            await put(out, tiny_settings, intent(number))
            await reader.until(lambda d, want=number + 1: len(d) >= want or task.done())  # type: ignore[misc]
            assert not task.done()
        told = [record.getMessage() for record in caplog.records if "counters" in record.getMessage()]
        run.unlink()
    assert len(told) == 1 and str(run) in told[0] and "make room" in told[0]
    assert (run / "writer-w0.json").is_file()
