"""Faust's known defects on a real broker: each is shown where the guard in ``streams/faust/app.py`` is taken away, and gone with it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import RebalanceInProgressError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from schemas.config import Settings
from schemas.errors import KafkaUnavailable
from schemas.topics import EVENTS
from streams.faust import consumer
from streams.faust.app import Batch, BatchApp
from streams.progress import Stalls
from transport.clients import producer, reader

pytestmark = pytest.mark.broker


async def until(true: Callable[[], Awaitable[Any]] | Callable[[], Any], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        found = true()
        if await found if asyncio.iscoroutine(found) else found:
            return
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.05)


class Bench:
    """Partition 0 is what a test is about; partition 1 shows that commits go on."""

    def __init__(self, settings: Settings) -> None:
        self.kafka, self.topic = settings.kafka, settings.kafka.topic(EVENTS)
        self.batches: dict[int, list[Batch]] = {0: [], 1: []}
        self.seen: dict[int, list[int]] = {0: [], 1: []}
        self.app = BatchApp("defects", self.kafka, [self.topic], self.handle)

    async def handle(self, batch: Batch) -> None:
        self.batches[batch.partition].append(batch)
        self.seen[batch.partition] += [int(record.value) for record in batch.records]

    async def put(self, *values: int, partition: int = 0) -> None:
        out = await producer(self.kafka)
        for value in values:
            await out.send_and_wait(self.topic, value=b"%d" % value, partition=partition)
        await out.stop()

    async def committed(self, partition: int = 0) -> int:
        client = await reader(self.kafka, group_id=self.app.group)
        try:
            return int(await client.committed(TopicPartition(self.topic, partition)) or 0)
        finally:
            await client.stop()

    def values(self, partition: int = 0) -> list[int]:
        return self.seen[partition]

    async def batch(self, value: int, partition: int = 0) -> Batch:
        """One record, published and handed to the handler."""
        await self.put(value, partition=partition)
        await until(lambda: value in self.values(partition))
        return self.batches[partition][-1]

    async def a_commit(self) -> None:
        """A whole round of the commit loop is over."""
        before = await self.committed(1)
        (await self.batch(before, partition=1)).done()
        await until(lambda: self._moved(before))

    async def _moved(self, before: int) -> bool:
        return await self.committed(1) > before


@pytest.fixture
async def bench(settings: Settings) -> Any:
    made = Bench(settings)
    await made.app.start()
    yield made
    made.app.grace = 0.1
    await made.app.stop()


async def test_an_agents_exception_acknowledges_the_event_in_plain_faust(settings: Settings) -> None:
    """The record that failed is committed and never seen again. Ours: ``test_an_error_in_a_handler_reaches_wait``, and below."""
    topic, seen = settings.kafka.topic(EVENTS), []
    app = faust.App(
        settings.kafka.topic("plain"),
        broker=f"kafka://{settings.kafka.bootstrap}",
        datadir=tempfile.gettempdir(),
        loop=asyncio.get_running_loop(),
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        stream_recovery_delay=0.0,
        broker_commit_interval=0.2,
    )

    @app.agent(app.topic(topic, value_serializer="raw"))
    async def agent(stream: Any) -> None:
        async for value in stream:
            if value == b"2":
                raise ValueError("no")
            seen.append(value)

    bench = Bench(settings)
    bench.app.group = app.conf.id
    await bench.put(*range(5))
    await app.start()
    try:
        await until(lambda: b"4" in seen)

        async def past() -> bool:
            return await bench.committed() == 5

        await until(past)
    finally:
        await app.stop()
    assert b"2" not in seen


async def test_what_failed_is_seen_again(settings: Settings) -> None:
    class Failing(Bench):
        async def handle(self, batch: Batch) -> None:
            raise ValueError("no")

    first = Failing(settings)
    await first.put(*range(5))
    await first.app.start()
    with pytest.raises(ValueError, match="no"):
        await first.app.wait(asyncio.Event())
    await first.app.stop()
    second = Bench(settings)
    assert await second.committed() == 0
    await second.app.start()
    await until(lambda: second.values() == list(range(5)))
    for batch in second.batches[0]:
        batch.done()
    await second.app.stop()


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_commit_passes_what_is_in_flight(bench: Bench, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    """faust-streaming/faust #606: of acknowledged offsets the first run is committed, wherever it begins."""
    if not guarded:
        monkeypatch.setattr(consumer.Consumer, "_new_offset", driver.Consumer._new_offset)
        monkeypatch.setattr(BatchApp, "finish", _acknowledge)
    first = await bench.batch(0)
    second = await bench.batch(1)
    second.done()
    if guarded:
        await bench.a_commit()
        assert await bench.committed() == 0
        first.done()
    await until(lambda: _at(bench, 2))


def _acknowledge(app: BatchApp, batch: Batch) -> None:
    """What a plain acknowledgement leaves in Faust's books."""
    books: Any = app._faust.consumer  # type: ignore[union-attr]
    books._acked[TP(batch.topic, batch.partition)].append(batch.last)


async def _at(bench: Bench, offset: int) -> bool:
    return await bench.committed() == offset


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_batch_that_reached_nobody_holds_up_commits_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    """As in a rebalance: acknowledged by Faust, handled by nobody. Unguarded, the watch sees that its partition commits no more."""
    lost = await bench.batch(0)
    assert lost.message is not None
    if not guarded:
        monkeypatch.setattr(consumer.Consumer, "_lost", staticmethod(lambda _batch: False))
    lane = bench.app.queues[TP(bench.topic, 0)]
    lane.open.discard(lost)
    lane.idle.set()
    bench.app.forget(lost)
    if guarded:
        await until(lambda: bench.values() == [0, 0])
        for batch in bench.batches[0][1:]:
            batch.done()
        await until(lambda: _at(bench, 1))
        return
    (await bench.batch(1)).done()
    await bench.a_commit()
    assert await bench.committed() == 0
    stalls, name = Stalls(patience=1.0, gap=1e9), f"{bench.topic}/0 commits"
    await until(lambda: name in stalls.look(time.monotonic(), bench.app.work()))


@pytest.mark.parametrize("guarded", [True, False])
async def test_reading_again_leaves_out_what_was_never_committed(bench: Bench, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    """``seek_to_committed`` doesn't touch a partition without a commit: what was in doubt there would be skipped, and then committed."""
    if not guarded:

        async def nowhere(*_: Any) -> None:
            return None

        monkeypatch.setattr(driver.AIOKafkaConsumerThread, "seek_to_beginning", nowhere)
    doubtful = await bench.batch(0)
    bench.app.queues[TP(bench.topic, 0)].open.discard(doubtful)
    bench.app._faust.consumer.doubt = True  # type: ignore[union-attr]
    await until(lambda: not bench.app._faust.consumer.doubt)  # type: ignore[union-attr]
    await bench.batch(1)
    for batch in bench.batches[0][1:]:
        batch.done()
    await until(lambda: _at(bench, 2))
    assert bench.values() == ([0, 0, 1] if guarded else [0, 1])  # unguarded, what was in doubt is committed and never seen again


async def test_a_refused_commit_counts_as_done_in_faust(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """consumer.py:1080; so the watch asks the broker what is committed, and finds the partition stuck."""

    async def refused(*_: Any) -> bool:
        return False

    (await bench.batch(0)).done()
    await until(lambda: _at(bench, 1))
    monkeypatch.setattr(consumer.Consumer, "_commit", refused)
    (await bench.batch(1)).done()
    tp = TP(bench.topic, 0)
    await until(lambda: bench.app._faust.consumer._committed_offset[tp] == 2)  # type: ignore[union-attr]
    assert await bench.committed() == 1
    stalls, name = Stalls(patience=1.0, gap=1e9), f"{bench.topic}/0 commits"
    await until(lambda: name in stalls.look(time.monotonic(), bench.app.work()))


async def test_a_commit_that_fails_ends_the_app_and_leaving_ends_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust passes over "already rebalanced" alone; anything else is the app's end, said in one line, and no loop tries for ever."""
    tried = []

    async def failing(*_: Any) -> None:
        tried.append(1)
        raise RebalanceInProgressError

    monkeypatch.setattr(AIOKafkaConsumer, "commit", failing)
    (await bench.batch(0)).done()
    with pytest.raises(KafkaUnavailable, match="start again") as caught:
        await bench.app.wait(asyncio.Event())
    assert "\n" not in str(caught.value)
    await bench.app.stop()
    assert 1 <= len(tried) < 10 and await bench.committed() == 0


async def test_leaving_ends_where_aiokafka_lets_its_own_cancellation_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in an outage. The consumer's thread died of it, a traceback on stderr, and nobody told who waited for its end."""
    close = Fetcher.close

    async def cancelled(self: Fetcher) -> None:
        await close(self)
        raise asyncio.CancelledError

    (await bench.batch(0)).done()
    with monkeypatch.context() as patched:
        patched.setattr(Fetcher, "close", cancelled)
        await bench.app.stop()
    assert "did not stop" not in caplog.text and await bench.committed() == 1


async def test_leaving_waits_for_no_batch_that_reached_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust would wait for its acknowledgement for ever, deaf to cancellation, as in a rebalance: neither app nor process ended."""
    waited: list[int] = []

    async def wait_empty(self: Any) -> None:
        waited.append(len(self._unacked_messages))

    monkeypatch.setattr(consumer.Consumer, "wait_empty", wait_empty)
    lost = await bench.batch(0)
    bench.app.queues[TP(bench.topic, 0)].open.discard(lost)
    bench.app.grace = 0.1
    await bench.app.stop()
    assert not waited and await bench.committed() == 0
