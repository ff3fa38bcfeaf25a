"""Lag in the words of mail: what waits at each stage, how old it is, and what will be too late."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from monitoring.connect import options
from schemas.config import Settings
from schemas.errors import KafkaUnavailable
from schemas.mail import seconds
from schemas.topics import DELIVERIES, DRAFTS, INTENTS

RATE_WINDOW = 60.0  # seconds of outcomes that "the present rate" is taken from ...
LONG_WINDOW = 3600.0  # ... or these, where that is more: a minute without mail is no standstill
KEPT = 100_000  # ended intents that are remembered (some 15 MB): after a crash intake may write an intent a second time
BACK = 2 * 86400.0  # seconds beyond the longest use-by from which topics are read at the start
POLL_MS = 100


class _Intent(msgspec.Struct):  # of schemas.mail.Intent what is needed here; the rest isn't decoded
    intent_id: str
    trigger: str
    due: str
    expires: str
    fired: str
    priority: int = 5


class _Id(msgspec.Struct):
    intent_id: str


class _Draft(msgspec.Struct):
    intent: _Id


@dataclass(frozen=True, slots=True)
class Waiting:
    """Intents of one trigger at one stage. ``will_expire`` counts those that end after their use-by at the present rate."""

    stage: Literal["writer", "sender"]
    trigger: str
    intents: int
    oldest_seconds: float  # since the oldest could have been sent
    will_expire: int


@dataclass(slots=True)
class OpenMail:
    """An intent without an outcome; wall times in seconds."""

    trigger: str
    priority: int
    ready: float  # from here on it waits
    until: float  # use-by
    drafted: bool = False


def waiting(intents: Iterable[OpenMail], rate: float, now: float) -> list[Waiting]:
    """The table, by stage and trigger. ``rate``: outcomes a second. Lanes are served by priority, then age."""
    counts: dict[tuple[bool, str], list[float]] = {}
    for place, one in enumerate(sorted(intents, key=lambda one: (one.priority, one.ready)), 1):
        found = counts.setdefault((one.drafted, one.trigger), [0, 0.0, 0])
        done_at = max(now, one.ready) + (place / rate if rate > 0 else float("inf"))
        found[0] += 1
        found[1] = max(found[1], now - one.ready)
        found[2] += done_at > one.until
    return [Waiting("sender" if drafted else "writer", name, int(c[0]), c[1], int(c[2])) for (drafted, name), c in sorted(counts.items())]


@dataclass
class Rate:
    """Outcomes a second, from counts by the second."""

    counts: deque[list[float]] = field(default_factory=deque)  # [second, outcomes], ascending but for what topics' partitions mix

    def add(self, at: float) -> None:
        """One outcome at this time."""
        second = float(int(at))
        if self.counts and self.counts[-1][0] >= second:
            self.counts[-1][1] += 1
        else:
            self.counts.append([second, 1])

    def present(self, now: float) -> float:
        """The newest minute's, or the newest hour's where that is more."""
        while self.counts and self.counts[0][0] < now - LONG_WINDOW:
            self.counts.popleft()
        newest = sum(count for second, count in self.counts if second >= now - RATE_WINDOW)
        return max(newest / RATE_WINDOW, sum(count for _, count in self.counts) / LONG_WINDOW)


@dataclass
class MailFollower:
    """Follows intents, drafts and deliveries; holds what is open, and which intents ended lately.

    The three topics are read side by side, so a draft or an outcome may come
    before its intent, and an intent a second time after its outcome.
    """

    settings: Settings
    open: dict[str, OpenMail] = field(default_factory=dict)
    caught_up: bool = False
    rate: Rate = field(default_factory=Rate)
    _ended: dict[bytes, None] = field(default_factory=dict)
    _early: dict[bytes, None] = field(default_factory=dict)  # drafts read before their intents
    _consumer: Any = None

    def look(self, now: float, longest: float = 2.0) -> list[Waiting] | None:
        """Read what is new, for ``longest`` seconds at most; None until all has been read once. Raises KafkaUnavailable."""
        try:
            self._read(time.monotonic() + longest)
        except (KafkaError, OSError) as error:
            self.close()
            raise KafkaUnavailable(f"no Kafka answers at {self.settings.kafka.bootstrap}: {error or type(error).__name__}") from error
        return waiting(self.open.values(), self.rate.present(now), now) if self.caught_up else None

    def close(self) -> None:
        """Close the consumer and forget: the next look reads again."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer, self.caught_up = None, False
            self.open, self.rate, self._ended, self._early = {}, Rate(), {}, {}

    def _read(self, deadline: float) -> None:
        if self._consumer is None:
            self._consumer = self._subscribe()
        places = self._consumer.assignment()
        ends = self._consumer.end_offsets(places) if places else {}
        while behind := [place for place, end in ends.items() if self._consumer.position(place) < end]:
            for place, records in self._consumer.poll(timeout_ms=POLL_MS, max_records=5000).items():
                for record in records:
                    if record.value is not None:
                        self.note(place.topic, record.value, record.timestamp / 1000)
            if time.monotonic() > deadline:
                break
        self.caught_up = self.caught_up or not behind

    def _subscribe(self) -> Any:
        kafka = self.settings.kafka
        consumer = KafkaConsumer(**options(kafka), enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed")
        names = [kafka.topic(name) for name in (INTENTS, DRAFTS, DELIVERIES)]
        places = [TopicPartition(name, number) for name in names for number in consumer.partitions_for_topic(name) or ()]
        consumer.assign(places)
        if places:
            # Deliveries are kept for ever; what is open can't be older than its use-by.
            back = BACK + max((trigger.use_by for trigger in self.settings.trigger), default=7 * 86400.0)
            found = consumer.offsets_for_times(dict.fromkeys(places, int((time.time() - back) * 1000)))
            for place in places:
                if found.get(place) is not None:
                    consumer.seek(place, found[place].offset)
                else:
                    consumer.seek_to_end(place)
        return consumer

    def note(self, topic: str, value: bytes, at: float) -> None:
        """One record of one of the three topics; what can't be read is the stages' business, not ours."""
        kafka = self.settings.kafka
        try:
            if topic == kafka.topic(INTENTS):
                self._intent(msgspec.json.decode(value, type=_Intent))
            elif topic == kafka.topic(DRAFTS):
                self._draft(msgspec.json.decode(value, type=_Draft).intent.intent_id)
            else:
                self._outcome(msgspec.json.decode(value, type=_Id).intent_id, at)
        except (msgspec.MsgspecError, ValueError):
            return

    def _intent(self, intent: _Intent) -> None:
        key = intent.intent_id
        if key in self.open or key.encode() in self._ended:
            return
        due, expires, fired = seconds(intent.due), seconds(intent.expires), seconds(intent.fired)
        # With the event clock lateness counts from the firing on, as the gate counts it.
        ready, until = (fired, fired + expires - due) if self.settings.clock == "event" else (max(fired, due), expires)
        self.open[key] = OpenMail(intent.trigger, intent.priority, ready, until, key.encode() in self._early)
        self._early.pop(key.encode(), None)

    def _draft(self, key: str) -> None:
        known = self.open.get(key)
        if known is not None:
            known.drafted = True
        elif key.encode() not in self._ended:
            _keep(self._early, key)

    def _outcome(self, key: str, at: float) -> None:
        self.rate.add(at)
        self.open.pop(key, None)
        self._early.pop(key.encode(), None)
        _keep(self._ended, key)


def _keep(memory: dict[bytes, None], key: str) -> None:
    memory[key.encode()] = None
    while len(memory) > KEPT:
        del memory[next(iter(memory))]
