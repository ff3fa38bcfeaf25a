"""From a mail that was sent to what it was worth: simulated readers, intake's attribution, the store, the bandit's chances."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from mailtide.demo.simulated_readers import Readers
from mailtide.replay.publish import answer_rest
from models.learning.simulated_reader import portrait, respond, taste_of
from models.phrasebook.book import TONES, Book
from schemas.config import Settings
from schemas.learning import ToneChances
from schemas.mail import Choice, Example, Feedback, encode, iso, seconds
from schemas.topics import EVENTS, EXAMPLES, FEEDBACK
from schemas.topics import TONES as TONES_TOPIC
from streams.intake import stage
from training.feedback.examples import follow, read_to, rows
from training.feedback.reward import OBJECTIONS, reward
from training.feedback.tones import Tones
from transport import blocking
from transport.clients import partition_of, producer

pytestmark = pytest.mark.broker

SENT = seconds("2026-03-02T15:00:00Z")
DAY = 86400.0
BOOK = Book.load()
MAILS = 90


def example(number: int, sent: float = SENT) -> Example:
    tone = TONES[number % 3]
    choices = tuple(
        Choice(move, clauses[number % len(clauses)].id, 0.2)
        for move in BOOK.moves("welcome")
        if (clauses := BOOK.clauses("welcome", move, tone))
    )
    text = BOOK.compose({choice.move: choice.clause for choice in choices})
    prompt = "Trigger: welcome\n\n"
    return Example(f"i{number:04d}", "c0", "welcome", prompt, text, choices, "base", "generated", tone, iso(sent), f"u{number}")


async def publish(settings: Settings, topic: str, pairs: list[tuple[str, bytes]], by_customer: bool = True) -> None:
    out = await producer(settings.kafka)
    try:
        for key, value in pairs:
            number = partition_of(key.encode(), settings.kafka.partitions) if by_customer else 0
            await out.send(settings.kafka.topic(topic), value, key.encode(), number)
        await out.flush()
    finally:
        await out.stop()


def event(customer: str, name: str, at: float, **properties: Any) -> tuple[str, bytes]:
    body = {"type": "track", "event": name, "userId": customer, "messageId": f"{customer}-{name}-{at}", "timestamp": iso(at)}
    return customer, msgspec.json.encode(body | {"properties": properties})


def feedback(settings: Settings) -> list[Feedback]:
    return [msgspec.json.decode(record.value, type=Feedback) for record in blocking.records(settings.kafka, FEEDBACK)]


async def until(met: Any, limit: float = 90.0) -> Any:
    deadline = time.monotonic() + limit
    while not (found := await asyncio.to_thread(met)):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.1)
    return found


@contextlib.asynccontextmanager
async def taking_in(settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(stage.serve(settings, stop))
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        stop.set()
        await task


async def test_what_readers_do_becomes_the_reward_of_their_mail_and_the_tone_of_the_next(settings: Settings, tmp_path: Path) -> None:
    mails = [example(number) for number in range(MAILS)]
    await publish(settings, EXAMPLES, [(mail.intent_id, encode(mail)) for mail in mails], by_customer=False)
    with Readers(settings, seed=7) as readers:
        await until(lambda: readers.mails == MAILS)
        async with taking_in(settings):
            published = await answer_rest(settings, readers, quiet=0.1)
            # A click whose opening was blocked, an opening after the window, and an objection that names no mail.
            by_hand = [
                event("u-click", "Email Link Clicked", SENT + 600, intent_id="i-click"),
                event("u-late", "Email Opened", SENT + settings.training.attribution + DAY, intent_id="i-late"),
                event("u-gone", "Unsubscribed", SENT + 60),
            ]
            await publish(settings, EVENTS, by_hand)
            await until(lambda: len(feedback(settings)) == published + len(by_hand))
    assert published == readers.did.total() > 0
    told = feedback(settings)
    assert all(one.simulated == one.intent_id.startswith("i0") for one in told)
    more = [
        msgspec.structs.replace(example(n), intent_id=f"i-{name}", customer=f"u-{name}") for n, name in enumerate(("click", "late", "gone"))
    ]
    # Two days on: whoever hasn't answered by now won't.
    more.append(msgspec.structs.replace(example(3, SENT + 2 * DAY), intent_id="i-new", customer="u-new"))
    await publish(settings, EXAMPLES, [(mail.intent_id, encode(mail)) for mail in more], by_customer=False)

    assert follow(settings, tmp_path) == MAILS + len(more) + len(told)
    found = {row.intent_id: row for row in rows(settings, tmp_path)["c0"]}
    taste, objectors = taste_of("c0", 7), {one.customer for one in told if one.kind in OBJECTIONS}
    assert found["i-click"].reward == reward(["clicked"]) > reward(["opened"])
    assert found["i-late"].reward == 0.0
    assert found.keys() == {mail.intent_id for mail in mails + more if mail.customer not in objectors}
    for mail in mails:
        if mail.customer not in objectors:
            done = respond(portrait(BOOK, "welcome", mail.tone, mail.choices), taste, 7, mail.intent_id)
            assert found[mail.intent_id].reward == reward(one.kind for one in done if one.kind != "ordered")

    assert Tones(settings).publish({"c0": list(found.values())})
    chances = msgspec.json.decode(next(blocking.records(settings.kafka, TONES_TOPIC)).value, type=ToneChances)
    assert chances.cluster == "c0"
    assert sum(chances.chances.values()) == pytest.approx(1.0)
    assert max(chances.chances, key=chances.chances.__getitem__) == taste.tone


FOLLOW = """
import sys, msgspec
from pathlib import Path
from schemas.config import Settings
from training.examples import follow
settings = msgspec.json.decode(sys.argv[1], type=Settings)
print("ready", flush=True)
follow(settings, Path(sys.argv[2]))
"""


async def killed_while_it_follows(settings: Settings, folder: Path) -> None:
    """Ends it as soon as one more file of its store is there."""
    stored = len(list(folder.iterdir()))
    command = [sys.executable, "-c", FOLLOW, msgspec.json.encode(settings).decode(), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        await until(lambda: len(list(folder.iterdir())) > stored or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


async def test_offsets_and_rows_agree_after_kills(settings: Settings, tmp_path: Path) -> None:
    """Killed as soon as a file of it is there, three times; afterwards each mail stands in the store once."""
    count = 6000
    told = [(f"i{number}", encode(msgspec.structs.replace(example(number % 50), intent_id=f"i{number}"))) for number in range(count)]
    await publish(settings, EXAMPLES, told, by_customer=False)
    for _ in range(3):
        await killed_while_it_follows(settings, tmp_path)
    follow(settings, tmp_path)
    names: list[str] = []
    for file in tmp_path.glob("*.parquet"):
        names += pq.read_table(file, columns=["intent_id"])["intent_id"].to_pylist()
    assert sorted(names) == sorted(name for name, _ in told)
    assert read_to(tmp_path)[settings.kafka.topic(EXAMPLES), 0] == count
    assert follow(settings, tmp_path) == 0
