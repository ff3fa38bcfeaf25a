"""A changelog that knows less than was applied: the worker says so and wipes nothing; what only looks like it is let through."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
from pathlib import Path

import msgspec
import pytest
from aiokafka import TopicPartition as Place
from kafka import TopicPartition

from schemas.config import Settings
from schemas.errors import StoreError
from schemas.topics import CUSTOMERS, EVENTS
from streams.intake.stage import GROUP, run
from streams.intake.store import Store
from tests.broker.intake import intake_double
from tests.broker.intake.test_intake import event, home, publish, serving, states, until
from tests.broker.intake.test_intake_batches import committed
from transport import topics
from transport.clients import reader

pytestmark = pytest.mark.broker


async def fill(settings: Settings, numbers: range) -> None:
    """An event of ``c`` each."""
    await publish(settings, [(b"c", event(number, "c"), home("c")) for number in numbers])


async def applied_by(settings: Settings, worker: str = "w0") -> None:
    """Until all is committed (who begins anew sends its watermarks anew, so these don't tell)."""
    client = await reader(settings.kafka)
    places = [Place(settings.kafka.topic(EVENTS), number) for number in (0, 1)]
    ends = {place.partition: end for place, end in (await client.end_offsets(places)).items()}
    await client.stop()

    async def done() -> bool:
        return all((offset or 0) >= ends[number] for number, offset in (await committed(settings, GROUP)).items())

    async with serving(settings, worker):
        await until(done)


async def made_anew(settings: Settings) -> None:
    name = settings.kafka.topic(CUSTOMERS)

    async def made() -> bool:
        return name in topics.create(settings)

    with topics.admin(settings.kafka) as client:
        client.delete_topics([name])
    await until(made)


def begin_anew(settings: Settings) -> None:
    """Forget the commits; and retention took three events meanwhile, so that a commit at the log's start is none at its first offset."""
    events = settings.kafka.topic(EVENTS)
    with topics.admin(settings.kafka) as client:
        client.delete_records({TopicPartition(events, home("c")): 3})
        client.delete_group_offsets(settings.kafka.topic(GROUP), [TopicPartition(events, number) for number in (0, 1)])


async def refused(settings: Settings, worker: str = "w0") -> str:
    with pytest.raises(StoreError) as caught:
        await asyncio.wait_for(run(intake_double.intake(settings, worker), asyncio.Event()), 60)
    said = str(caught.value)
    del caught
    gc.collect()  # a crashed app is full of cycles, whose finalizers must not run in the midst of something else
    return said


def customers(settings: Settings, worker: str = "w0") -> dict[str, bytes]:
    store = Store(Path(settings.home) / "state" / f"intake-{worker}" / str(home("c")))
    try:
        return dict(store.items())
    finally:
        store.close()


async def test_a_worker_refuses_and_leaves_what_it_has(settings: Settings) -> None:
    await fill(settings, range(5))
    await applied_by(settings)
    before = customers(settings)
    assert before.keys() == {"c"}
    await made_anew(settings)
    for worker in ("w0", "w1"):  # with a store, and without: neither may begin from nothing
        said = await refused(settings, worker)
        assert "\n" not in said
        for named in (f"{settings.kafka.topic(CUSTOMERS)} partition {home('c')} ", "--delete-offsets", f"{settings.home}/state", " 5"):
            assert named in said
    assert customers(settings) == before

    begin_anew(settings)  # the mend that it names
    await applied_by(settings)
    assert (await states(settings))["c"]["n"] == 2


async def test_a_store_of_a_past_that_was_given_up_is_wiped(settings: Settings) -> None:
    """On another machine all was begun anew meanwhile, and is committed."""
    await fill(settings, range(5))
    for number in range(5, 8):  # a longer changelog than the new one is going to be
        await applied_by(settings)
        await fill(settings, range(number, number + 1))
    await made_anew(settings)
    begin_anew(settings)
    elsewhere = msgspec.structs.replace(settings, home=settings.home + "-elsewhere")
    await applied_by(elsewhere)
    await fill(settings, range(8, 9))  # something to wait for
    await applied_by(settings)
    assert json.loads(customers(settings)["c"])["n"] == 6


async def test_what_changed_no_state_is_no_loss(settings: Settings) -> None:
    """Dead letters and strays move the commit; the next owner, with the files or without, begins behind them."""
    bad = [(b"k", b"no event", number % 2) for number in range(4)]
    await publish(settings, [*bad, (b"c", event(1, "c"), 1 - home("c"))])
    await applied_by(settings)
    await publish(settings, bad)
    await applied_by(settings)
    shutil.rmtree(Path(settings.home) / "state")
    await publish(settings, bad)
    await applied_by(settings)
    assert {customer: state["n"] for customer, state in (await states(settings)).items()} == {"c": 1}
