"""Names and addresses stand in the mails, and nowhere in what the trainer keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mailtide.local import mail_server
from schemas.config import Settings
from schemas.mail import Feedback, iso
from schemas.topics import FEEDBACK
from tests.broker.sender.test_sender import bench, draft_for, know, serving, until, with_smtp
from training.feedback.examples import follow, rows

pytestmark = pytest.mark.broker
PEOPLE = {"k1": "Zephyrine", "k2": "Oswin", "k3": "Tamsin", "k4": "Ludovica", "k5": "Perpetua"}


@pytest.fixture
def local(settings: Settings) -> Any:
    server = mail_server.start(settings)
    yield with_smtp(settings, server.port)
    server.stop()


async def test_the_store_holds_slots_in_place_of_facts(local: Settings, tmp_path: Path) -> None:
    for customer, name in PEOPLE.items():
        know(local, customer, name=name)
    async with bench(local) as b:
        for customer in PEOPLE:
            await b.standing(customer)
            draft = draft_for(customer)
            await b.draft(draft)
            await b.put(FEEDBACK, customer, Feedback(draft.intent.intent_id, customer, "opened", iso(0.0)))
        async with serving(local):
            await b.outcomes(len(PEOPLE), seconds=120.0)
            taken = await until(lambda: follow(local, tmp_path) and rows(local, tmp_path))
            while sum(map(len, taken.values())) < len(PEOPLE):
                await until(lambda: follow(local, tmp_path))
                taken = rows(local, tmp_path)
    mails = b.mails()
    assert {mail["To"] for mail in mails} == {f"{customer}@customers.example.com" for customer in PEOPLE}
    assert all(any(name in str(mail.get_body(("plain",))) for mail in mails) for name in PEOPLE.values())
    kept = list(tmp_path.glob("*.parquet"))
    assert kept
    said = "\n".join(str(cell) for file in kept for row in pq.read_table(file).to_pylist() for cell in row.values()).lower()
    assert "{first_name}" in said
    for secret in (*PEOPLE.values(), *(f"{customer}@customers" for customer in PEOPLE), "example.com"):
        assert secret.lower() not in said
        assert all(secret.encode() not in file.read_bytes() for file in kept)
