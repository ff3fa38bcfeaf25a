"""Simulated readers of the mails that were really sent: they answer on ``customer.events`` as an email provider's webhook would.

Each cluster has a hidden taste (``models.learning.simulated_reader``). Every event they make says
``properties.simulated``. Answers wait until the replay's own time has reached
theirs: an event from the future would fire timers early.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from typing import Any

import msgspec

from mailtide.replay.sources.dated import Dated
from models.learning.simulated_reader import met, portrait, respond, taste_of
from models.phrasebook.book import Book
from schemas.config import Settings
from schemas.errors import PhrasebookError
from schemas.mail import Example, iso, seconds
from schemas.topics import EXAMPLES
from transport.blocking import following

# What a webhook tells; orders stay those of the replayed source.
EVENTS = {
    "opened": "Email Opened",
    "clicked": "Email Link Clicked",
    "unsubscribed": "Unsubscribed",
    "complained": "Email Marked as Spam",
}


class Readers:
    """Follows ``training.examples`` in a thread of its own; ``due`` hands out answers in the order of their time."""

    def __init__(self, settings: Settings, seed: int = 0, book: Book | None = None) -> None:
        self.settings, self.seed, self.book = settings, seed, book or Book.load()
        self.did: Counter[str] = Counter()
        self.mails = self.in_taste = 0
        self._waiting: list[tuple[float, str, Dated]] = []
        self._seen: set[str] = set()
        self._lock, self._halt = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="readers", daemon=True)

    def __enter__(self) -> Readers:
        """Begin to read."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading; what wasn't handed out is never done."""
        self._halt.set()
        self._thread.join(10)

    def due(self, at: float) -> list[Dated]:
        """Answers up to this time, oldest first."""
        with self._lock:
            found = []
            while self._waiting and self._waiting[0][0] <= at:
                found.append(heapq.heappop(self._waiting)[2])
            return found

    def told(self) -> dict[str, Any]:
        """For the summary."""
        return {"simulated": True, "mails_read": self.mails, "in_taste": self.in_taste, **dict(sorted(self.did.items()))}

    def read(self, example: Example) -> None:
        """One mail reaches its reader; a mail that was read before is read once."""
        if example.intent_id in self._seen:
            return
        try:
            mail = portrait(self.book, example.trigger, example.tone, example.choices)
        except PhrasebookError:
            return  # written from another edition of the book
        taste = taste_of(example.cluster, self.seed)
        done = respond(mail, taste, self.seed, example.intent_id)
        with self._lock:
            self._seen.add(example.intent_id)
            self.mails += 1
            self.in_taste += met(mail, taste) == 3
            for one in done:
                if one.kind in EVENTS:
                    self.did[one.kind] += 1
                    at = seconds(example.sent) + one.after
                    event = answer(example, one.kind, at)
                    heapq.heappush(self._waiting, (at, event["messageId"], Dated(at, example.customer, event)))

    def _follow(self) -> None:
        following(self.settings, (EXAMPLES,), self._halt, lambda _, record: self.read(msgspec.json.decode(record.value, type=Example)))


def answer(example: Example, kind: str, at: float) -> dict[str, Any]:
    """The event; its message id is the same at each replay, so that a repeat counts once."""
    return {
        "type": "track",
        "event": EVENTS[kind],
        "userId": example.customer,
        "messageId": f"sim-{example.intent_id}-{kind}",
        "timestamp": iso(at),
        "context": {"integration": {"name": "simulated reader"}},
        "properties": {"intent_id": example.intent_id, "simulated": True},
    }
