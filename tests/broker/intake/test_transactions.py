"""A shop whose producer writes in transactions: only what was committed counts, and nothing is left to read behind it."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition

from schemas.config import Settings
from schemas.topics import CUSTOMERS, EVENTS
from streams.intake.stage import GROUP
from streams.intake.store import CLOCK, Clock
from tests.broker.intake.test_intake import event, everything, home, publish, serving, states, until
from tests.broker.intake.test_intake_batches import committed
from transport.clients import producer, reader

pytestmark = pytest.mark.broker


async def shop(settings: Settings) -> Any:
    return await producer(settings.kafka, transactional_id=f"{settings.kafka.prefix}shop")


async def write(client: Any, settings: Settings, customer: str, numbers: range) -> None:
    for number in numbers:
        await client.send(settings.kafka.topic(EVENTS), key=customer.encode(), value=event(number, customer), partition=home(customer))
    await client.flush()


def at(partition: int) -> list[str]:
    """Customers at home there."""
    return [name for name in (f"c{n}" for n in range(100)) if home(name) == partition]


async def has(settings: Settings, customer: str) -> bool:
    return customer in await states(settings)


async def test_only_what_was_committed_counts(settings: Settings) -> None:
    client = await shop(settings)
    gone, bought, plain, *_ = at(0)
    try:
        async with serving(settings):
            await client.begin_transaction()
            await write(client, settings, gone, range(5))
            await client.abort_transaction()
            await client.begin_transaction()
            await write(client, settings, bought, range(10, 13))
            await client.commit_transaction()
            await publish(settings, [(plain.encode(), event(20, plain), 0)])
            await until(lambda: has(settings, plain))
        assert {customer: state["n"] for customer, state in (await states(settings)).items()} == {bought: 3, plain: 1}
    finally:
        await client.stop()


async def test_an_open_transaction_is_waited_for(settings: Settings) -> None:
    """Nobody knows yet whether it counts, and what stands behind it must not be applied before it."""
    client = await shop(settings)
    (gone, behind, *_), (beside, *_) = at(0), at(1)
    try:
        async with serving(settings):
            await client.begin_transaction()
            await write(client, settings, gone, range(3))
            await publish(settings, [(name.encode(), event(9, name), home(name)) for name in (behind, beside)])
            await until(lambda: has(settings, beside))
            assert (await states(settings)).keys() == {beside}
            await client.abort_transaction()
            await until(lambda: has(settings, behind))
        assert (await states(settings)).keys() == {behind, beside}
    finally:
        await client.stop()


async def clocks(settings: Settings) -> dict[int, int]:
    """How far each partition has been applied, as its next owner will find it."""
    marks = {0: 0, 1: 0}
    for record in await everything(settings, CUSTOMERS):
        if record.key == CLOCK:
            marks[record.partition] = max(marks[record.partition], Clock.unpacked(record.value).offset)
    return marks


async def test_nothing_is_left_behind_the_last_marker(settings: Settings) -> None:
    """Nor after a kill between the changelog, which knows of the marker first, and the commit."""
    client = await shop(settings)
    (one, *_), (gone, *_) = at(0), at(1)
    await client.begin_transaction()
    await write(client, settings, one, range(3))
    await client.commit_transaction()
    await client.begin_transaction()
    await write(client, settings, gone, range(2))
    await client.abort_transaction()
    await client.stop()
    ends: dict[int, int | None] = {0: 4, 1: 3}  # with a marker each

    async def all_committed() -> bool:
        found = await committed(settings, GROUP)
        assert all((offset or 0) <= clock for offset, clock in zip(found.values(), (await clocks(settings)).values(), strict=True))
        return found == ends

    async with serving(settings):
        await until(all_committed)
    assert await clocks(settings) == ends
    place = TopicPartition(settings.kafka.topic(EVENTS), 0)
    member = await reader(settings.kafka, group_id=settings.kafka.topic(GROUP))
    member.assign([place])
    await member.commit({place: 3})
    await member.stop()
    async with serving(settings):
        await until(all_committed)
    assert {customer: state["n"] for customer, state in (await states(settings)).items()} == {one: 3}
