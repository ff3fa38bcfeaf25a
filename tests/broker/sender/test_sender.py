"""The sender against a real Kafka and real mail servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mailtide.local import mail_server
from mailtide.local.mail_server import LocalMailServer, StoringHandler
from schemas.config import SendingSettings, Settings, SmtpSettings, Trigger
from schemas.mail import Claim, Delivery, Draft, Facts, Gone, Intent, Product, Source, Standing, Watermark, encode, intent_id, iso
from schemas.topics import CLAIMS, DELIVERIES, DRAFTS, EVENTS, GATE
from streams.profiles import Profiles
from streams.sender import dispatch, draft_queue, stage
from transport import blocking
from transport.clients import partition_of, producer

pytestmark = pytest.mark.broker

TEXT = (
    "Subject: Welcome to {shop_name}\nPreheader: We're glad you're here.\n\nHi {first_name},\n\n"
    "It's good to have you with us. If you need a hand with anything, just write to us and a person will answer. "
    "Take your time to look around.\n\nLook around the shop: {cta_link}"
)


def draft_for(
    customer: str, trigger: str = "welcome", text: str = TEXT, use_by: float = 3600.0, occurrence: str = "1", **more: Any
) -> Draft:
    now = time.time()
    intent = Intent(
        intent_id(customer, trigger, occurrence),
        customer,
        trigger,
        occurrence,
        iso(now),
        iso(now + use_by),
        "c0",
        more.pop("facts", Facts()),
        Source("customer.events", 0, 0),
        iso(now),
        **more,
    )
    return Draft(intent, text, "template", "guided", "base", 1)


class Bench:
    """Puts records where intake and the writer would, and reads what became of them."""

    def __init__(self, settings: Settings, out: Any) -> None:
        self.settings, self.out, self.kafka = settings, out, settings.kafka

    async def put(self, topic: str, customer: str, record: msgspec.Struct, key: str = "") -> None:
        number = partition_of(customer.encode(), self.kafka.partitions)
        await self.out.send_and_wait(self.kafka.topic(topic), encode(record), (key or customer).encode(), number)

    async def standing(self, customer: str, **more: Any) -> None:
        await self.put(GATE, customer, Standing(customer, **{"consent": True, "address": True} | more))

    async def draft(self, draft: Draft) -> str:
        await self.put(DRAFTS, draft.intent.customer, draft)
        return draft.intent.intent_id

    async def watermark(self, number: int, offset: int) -> None:
        await self.out.send_and_wait(self.kafka.topic(GATE), encode(Watermark(number, offset, 0.0)), b"watermark", number)

    def deliveries(self) -> list[Delivery]:
        return [msgspec.json.decode(record.value, type=Delivery) for record in blocking.records(self.kafka, DELIVERIES)]

    def claims(self) -> list[Claim]:
        return [msgspec.json.decode(record.value, type=Claim) for record in blocking.records(self.kafka, CLAIMS)]

    async def outcomes(self, count: int, seconds: float = 60.0) -> dict[str, Delivery]:
        """By intent, once there are so many."""
        found = await until(lambda: (seen := self.deliveries()) and len(seen) >= count and seen, seconds)
        assert len(found) == len({delivery.intent_id for delivery in found}) == count
        return {delivery.intent_id: delivery for delivery in found}

    def mails(self) -> list[EmailMessage]:
        files = (Path(self.settings.home) / "outbox").glob("*.eml")
        return [message_from_bytes(file.read_bytes(), policy=policy.default) for file in sorted(files)]  # type: ignore[misc]


async def until(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What ``found`` gives once it is something."""
    deadline = time.monotonic() + seconds
    while not (value := await asyncio.to_thread(found)):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.05)
    return value


def with_smtp(settings: Settings, port: int, **more: Any) -> Settings:
    return msgspec.structs.replace(
        settings,
        smtp=SmtpSettings(url=f"smtp://127.0.0.1:{port}", **more),
        sending=SendingSettings(holdout=0.0, quiet_start="00:00", quiet_end="00:00"),
        trigger=(Trigger("welcome", on="Signed Up"), Trigger("complaint_care", on="Support Ticket Opened", marketing=False)),
    )


def know(settings: Settings, *customers: str, name: str = "Maria") -> None:
    store = Profiles.open(settings)
    store.put_many([(customer, {"email": f"{customer}@customers.example.com", "firstName": name}, 0.0) for customer in customers])
    store.close()


@contextlib.asynccontextmanager
async def bench(settings: Settings) -> AsyncIterator[Bench]:
    out = await producer(settings.kafka)
    try:
        yield Bench(settings, out)
    finally:
        await out.stop()


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(stage.serve(settings, stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)


@pytest.fixture
def local(settings: Settings) -> Any:
    """Settings with the local mail server running."""
    server = mail_server.start(settings)
    yield with_smtp(settings, server.port)
    server.stop()


async def test_every_draft_ends_once_and_only_the_admitted_are_sent(local: Settings) -> None:
    know(local, "ada", "bea", "cleo", "dora", "eve", "fay", "gus")
    async with bench(local) as b:
        await b.standing("ada")
        await b.standing("bea", consent=False)
        await b.standing("cleo", unsubscribed=True)
        await b.standing("dora", bounced=True)
        await b.standing("eve", address=False)
        await b.standing("fay", consent=False)
        ids = {name: await b.draft(draft_for(name)) for name in ("ada", "bea", "cleo", "dora", "eve")}
        ids["fay"] = await b.draft(draft_for("fay", "complaint_care", priority=0))
        ids["late"] = await b.draft(draft_for("ada", use_by=-1.0, occurrence="2"))
        gone = draft_for("ada", occurrence="3")
        await b.put(GATE, "ada", Gone("ada", gone.intent.intent_id, "ordered"), gone.intent.intent_id)
        async with serving(local):
            await b.outcomes(7)
            ids["gone"] = await b.draft(gone)
            await b.draft(draft_for("ada"))  # the same intent again
            await b.draft(draft_for("gus", occurrence="z"))  # of whom nothing is known
            seen = await b.outcomes(9)
    ends = {name: (seen[intent].reason or seen[intent].status) for name, intent in ids.items()}
    assert ends == {
        "ada": "sent",
        "bea": "no_consent",
        "cleo": "unsubscribed",
        "dora": "bounced",
        "eve": "no_address",
        "fay": "sent",
        "late": "expired",
        "gone": "condition_gone",
    }
    mails = {mail["To"]: mail for mail in b.mails()}
    assert set(mails) == {"ada@customers.example.com", "fay@customers.example.com"}
    mail = mails["ada@customers.example.com"]
    assert mail["Message-ID"] == seen[ids["ada"]].message_id == f"<{ids['ada']}@tidewater.example.com>"
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert "Hi Maria" in mail.get_body(("plain",)).get_content()  # type: ignore[union-attr]
    assert {claim.intent_id for claim in b.claims()} == {ids["ada"], ids["fay"]}


async def test_a_profile_that_lies_in_another_workers_store_is_waited_for(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LONGEST_BACKOFF", 0.2)
    know(local, "bea")
    async with bench(local) as b:
        for name in ("ada", "bea"):
            await b.standing(name)
        ids = {name: await b.draft(draft_for(name)) for name in ("ada", "bea")}
        async with serving(local):
            seen = await b.outcomes(1)
            assert seen.keys() == {ids["bea"]}
            know(local, "ada")
            seen = await b.outcomes(2)
    assert {seen[intent].status for intent in ids.values()} == {"sent"}


async def test_an_order_that_intake_has_not_read_yet_cancels(local: Settings) -> None:
    know(local, "ada")
    number = partition_of(b"ada", local.kafka.partitions)
    async with bench(local) as b:
        await b.standing("ada")
        await b.watermark(number, 0)
        await b.out.send_and_wait(local.kafka.topic(EVENTS), b'{"event":"Order Completed"}', b"ada", number)
        async with serving(local):
            draft = draft_for("ada")
            await b.draft(draft)
            other = (
                "bob"
                if partition_of(b"bob", 2) != number
                else next(f"bob{i}" for i in range(99) if partition_of(f"bob{i}".encode(), 2) != number)
            )
            await b.standing(other, consent=False)
            await b.draft(draft_for(other))
            await b.outcomes(1)  # the sender is at work, and ada's draft waits
            await b.put(GATE, "ada", Gone("ada", draft.intent.intent_id, "ordered"), draft.intent.intent_id)
            await b.watermark(number, 1)
            seen = await b.outcomes(2)
    assert seen[draft.intent.intent_id].reason == "condition_gone"
    assert b.mails() == []


class Moody(StoringHandler):
    """A mail server with a mood for each customer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tries: dict[str, int] = {}

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        name = envelope.rcpt_tos[0].partition("@")[0]
        self.tries[name] = self.tries.get(name, 0) + 1
        if name == "soon" and self.tries[name] < 3:
            return "451 come back"
        if name == "never":
            return "550 no such user"
        if name == "drop":
            await super().handle_DATA(server, session, envelope)
            server.transport.abort()
            return "250 nobody hears this"
        return await super().handle_DATA(server, session, envelope)

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:
        name = address.partition("@")[0]
        if name == "rcpt":
            return "553 not here"
        envelope.rcpt_tos.append(address)
        return "250 OK"


async def test_what_the_server_says_decides(settings: Settings) -> None:
    server = LocalMailServer(Path(settings.home) / "outbox", 0, Moody(Path(settings.home) / "outbox")).start()
    local, names = with_smtp(settings, server.port), ("fine", "soon", "never", "rcpt", "drop")
    know(local, *names)
    try:
        async with bench(local) as b:
            for name in names:
                await b.standing(name)
            ids = {name: await b.draft(draft_for(name)) for name in names}
            async with serving(local):
                seen = await b.outcomes(5)
        moods = server._handler.tries
    finally:
        server.stop()
    ends = {name: (seen[intent].status, seen[intent].code) for name, intent in ids.items()}
    assert ends == {
        "fine": ("sent", None),
        "soon": ("sent", None),
        "never": ("failed", 550),
        "rcpt": ("failed", 553),
        "drop": ("unknown", None),
    }
    assert moods == {"fine": 1, "soon": 3, "never": 1, "drop": 1}
    assert len(b.mails()) == 3  # fine, soon, and the one that nobody knows of
    withdrawn = [claim for claim in b.claims() if claim.withdrawn]
    assert {claim.customer for claim in withdrawn} == {"soon"}


async def test_an_outage_delays_and_claims_nothing(settings: Settings) -> None:
    server = mail_server.start(settings)
    port = server.port
    server.stop()
    local = with_smtp(settings, port)
    know(local, "ada")
    async with bench(local) as b:
        await b.standing("ada")
        await b.standing("bob", consent=False)
        await b.draft(draft_for("ada"))
        await b.draft(draft_for("bob"))
        async with serving(local):
            await b.outcomes(1)
            assert b.claims() == []
            server = LocalMailServer(Path(settings.home) / "outbox", port).start()
            try:
                await b.outcomes(2)
            finally:
                server.stop()
    assert len(b.mails()) == 1


class Silent(StoringHandler):
    """Takes the mail and never answers."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        await super().handle_DATA(server, session, envelope)
        await asyncio.sleep(3600)
        return "250 too late"


async def test_a_sender_killed_between_claim_and_answer_leaves_an_unknown(settings: Settings) -> None:
    """And few of them: what waits for a free connection isn't claimed yet."""
    folder = Path(settings.home) / "outbox"
    silent = LocalMailServer(folder, 0, Silent(folder)).start()
    quick = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, session_timeout=6.0))
    local, names = with_smtp(quick, silent.port, connections=1), [f"ada{n}" for n in range(40)]
    know(local, *names, "bea")
    async with bench(local) as b:
        for name in names:
            await b.standing(name)
            await b.draft(draft_for(name))
        program = (
            "import asyncio, sys, msgspec; from schemas.config import Settings; from streams.sender import stage\n"
            "asyncio.run(stage.serve(msgspec.json.decode(sys.stdin.read(), type=Settings), asyncio.Event()))"
        )
        victim = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        try:
            victim.stdin.write(msgspec.json.encode(local))  # type: ignore[union-attr]
            victim.stdin.close()  # type: ignore[union-attr]
            await until(lambda: list(folder.glob("*.eml")) and len(b.claims()) >= draft_queue.AHEAD)
        finally:
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
        silent.stop()
        server = mail_server.start(settings)
        try:
            again = with_smtp(quick, server.port)
            await b.standing("bea")
            second = await b.draft(draft_for("bea"))
            async with serving(again):
                seen = await b.outcomes(len(names) + 1)
        finally:
            server.stop()
    unknown = [one for one in seen.values() if one.status == "unknown"]
    assert 1 <= len(unknown) <= draft_queue.AHEAD
    assert {one.status for one in seen.values()} == {"unknown", "sent"} and seen[second].status == "sent"
    assert len(b.mails()) == len(seen) - len(unknown) + 1  # the one that the dead sender had handed over, too


async def test_a_full_desk_reads_on_later(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MOST_WAITING", 8)
    names = [f"c{i}" for i in range(60)]
    know(local, *names)
    async with bench(local) as b:
        for name in names:
            await b.standing(name)
            await b.draft(draft_for(name))
        async with serving(local):
            seen = await b.outcomes(60)
    assert {delivery.status for delivery in seen.values()} == {"sent"}
    assert len(b.mails()) == 60


async def test_names_and_products_cannot_break_out(local: Settings) -> None:
    know(local, "ada", name='<script>alert("x")</script>\r\nBcc: all@example.com \u202e{product_1}')
    text = TEXT.replace("It's good to have you with us.", "It's good to have you with us, and {product_1} with you.")
    facts = Facts(products=(Product("p", '"><img src=x onerror=1>\n{first_name}', price=2.5),))
    async with bench(local) as b:
        await b.standing("ada")
        await b.draft(draft_for("ada", text=text, facts=facts))
        async with serving(local):
            seen = await b.outcomes(1)
    assert [delivery.status for delivery in seen.values()] == ["sent"]
    (mail,) = b.mails()
    page = mail.get_body(("html",)).get_content()  # type: ignore[union-attr]
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert mail["Bcc"] is None
    assert "{first_name}" in page  # the product's name, as it is
    assert "\u202e" not in page
