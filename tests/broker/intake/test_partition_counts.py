"""``customer.events`` may be older than Mailtide, with a count of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kafka.admin import NewPartitions, NewTopic

from schemas.config import KafkaSettings, Settings
from schemas.errors import TopicMismatch
from schemas.topics import CUSTOMERS, EVENTS
from streams.intake.stage import run
from tests.broker.intake import intake_double
from tests.broker.intake.test_intake import event, publish, serving, states, until
from transport import topics

pytestmark = pytest.mark.broker


async def test_more_partitions_than_ours_are_refused_until_ours_are_as_many(settings: Settings) -> None:
    events, ours = settings.kafka.topic(EVENTS), settings.kafka.topic(CUSTOMERS)
    with topics.admin(settings.kafka) as client:
        client.create_partitions({events: NewPartitions(3)})
        with pytest.raises(TopicMismatch) as caught:
            await asyncio.wait_for(run(intake_double.intake(settings), asyncio.Event()), 60)
        said = str(caught.value)
        assert said.startswith(f"{events} has 3 partitions, {ours} 2, ") and "\n" not in said
        client.create_partitions(dict.fromkeys(said.split("'")[1].split("|"), NewPartitions(3)))  # the mend that it names
    await publish(settings, [(b"c", event(1, "c", messageId=...), number) for number in range(3)])
    async with serving(settings) as stage:
        await until(lambda: counted(stage.counts["read"], 3))


async def test_fewer_partitions_than_ours_do_no_harm(kafka: str, prefix: str, tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path / "home"), kafka=KafkaSettings(bootstrap=kafka, prefix=prefix, partitions=2))
    with topics.admin(settings.kafka) as client:
        client.create_topics([NewTopic(settings.kafka.topic(EVENTS), 1, 1)])
    topics.create(settings)
    await publish(settings, [(b"c", event(1, "c"), 0)])
    async with serving(settings) as stage:
        await until(lambda: counted(stage.counts["read"], 1))
    assert (await states(settings))["c"]["n"] == 1


async def counted(read: int, wanted: int) -> bool:
    return read == wanted
