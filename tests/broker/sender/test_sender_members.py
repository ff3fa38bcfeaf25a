"""Any number of senders share the partitions: drafts and gate of one number always lie with one member."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition

from schemas.config import Settings
from schemas.topics import DRAFTS, GATE
from streams.sender.stage import Sender
from tests.broker.sender.test_sender import bench, draft_for, know, until, with_smtp

pytestmark = pytest.mark.broker


async def test_what_lies_apart_is_waited_for_unless_the_topics_differ(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Sender(with_smtp(settings, 9), "s0")
    drafts, gate = settings.kafka.topic(DRAFTS), settings.kafka.topic(GATE)
    counts: dict[str, set[int]] = {drafts: {0, 1}, gate: {0, 1}}
    monkeypatch.setattr(one.consumer, "pause", lambda *_: None)
    monkeypatch.setattr(one.consumer, "partitions_for_topic", counts.get)
    await one.on_partitions_assigned([TopicPartition(drafts, 0), TopicPartition(gate, 1)])
    assert (one.joined, one.tasks, one.failure.done()) == (False, {}, False)
    counts[gate] = {0, 1, 2}
    await one.on_partitions_assigned([TopicPartition(drafts, 0), TopicPartition(gate, 1)])
    assert "different partitions" in str(one.failure.exception())
    await one.consumer.stop()


async def member(one: Sender, stop: asyncio.Event) -> None:
    try:
        await one.start()
        await one.run(stop)
    finally:
        await one.close()


async def test_a_third_sender_of_two_partitions_does_no_harm(settings: Settings) -> None:
    local, names = with_smtp(settings, 9), [f"c{n}" for n in range(8)]
    know(local, *names)
    stop, senders = asyncio.Event(), [Sender(local, f"s{n}") for n in range(3)]
    async with bench(local) as b:
        for name in names:
            await b.standing(name, consent=False)
            await b.draft(draft_for(name))
        running = [asyncio.create_task(member(one, stop)) for one in senders]

        def shared() -> bool:
            """All three are in the group, and each partition lies with one of them; or one has given up."""
            here = sorted(number for one in senders for number in one.queues)
            return any(task.done() for task in running) or (all(one.joined for one in senders) and here == [0, 1])

        try:
            await until(shared)
            seen = await b.outcomes(len(names))
            assert [task for task in running if task.done()] == []
            assert {one.reason for one in seen.values()} == {"no_consent"}
        finally:
            stop.set()
            await asyncio.gather(*running, return_exceptions=True)
