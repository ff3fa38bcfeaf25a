"""One look at a cluster: committed offsets first, log ends second, a row for each pair that committed something or is expected to."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import BrokerResponseError, KafkaError

from monitoring.ages import Ages
from monitoring.connect import options
from monitoring.groups import CONSUMERS, Group, after
from monitoring.verdict import Sample, State, drain_seconds, judge, lag_seconds, rates
from schemas.config import Settings
from schemas.errors import KafkaUnavailable
from schemas.topics import READERS

WINDOW = 10  # looks that a verdict is made from, at least; more where they don't span the patience
ROUNDS = re.compile(r"mailtide-trainer$")  # works in rounds, and commits only between them
ROUND = 900.0  # seconds that a round may take before it counts as stalled
LEFT_OUT = 60.0  # seconds for which a topic or group that can't be read isn't asked about again
COUNTED = 60.0  # seconds for which topics are taken to keep their partitions: thousands take a moment to tell
# Faust's own topics: a changelog is read only in recovery, and nobody reads the others by offset. Repartition topics are read as any.
INTERNAL = re.compile(r"(-changelog|-__assignor-__leader)$|^f-reply-")

Pair = tuple[str, TopicPartition]  # group, partition
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LagRow:
    """One group's reading of one partition. None: not known, never NaN or -1."""

    group: str
    topic: str
    partition: int
    committed: int | None  # None: nothing yet, so that all that is kept is lag
    end: int
    lag: int
    lag_seconds: float | None
    rate: float | None  # consumed records a second
    produced: float | None
    drain_seconds: float | None
    state: State
    retention_ratio: float | None  # 1 means that retention is about to take what is not read


@dataclass
class LagPoller:
    """Keeps the windows between looks. ``wanted`` decides which groups are looked at.

    ``expected``: topics by group that get rows, after the others, also before their first commit. They begin at the oldest record.
    """

    settings: Settings
    wanted: Callable[[str], bool]
    clock: Callable[[], float] = time.time
    expected: Mapping[str, Iterable[str]] = field(default_factory=lambda: READERS)
    windows: dict[Pair, deque[Sample]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    scrape_seconds: float = 0.0
    looked_at: float = 0.0  # the clock's time of the newest look that succeeded
    errors: int = 0
    _admin: Any = None
    _ages: Ages = field(init=False)
    _left_out: dict[str, float] = field(default_factory=dict)  # "topic x" or "group x", until when
    _counts: dict[str, tuple[int, float]] = field(default_factory=dict)  # partitions of a topic, until when they count

    def __post_init__(self) -> None:
        """The consumer that reads ages connects when it is first needed."""
        self._ages = Ages(self.settings.kafka)

    def look(self) -> list[LagRow]:
        """One cycle; KafkaUnavailable where no broker answers."""
        began = time.perf_counter()
        try:
            found = self._look()
        except (KafkaError, OSError) as error:
            self.errors += 1
            self.close()
            raise KafkaUnavailable(f"no Kafka answers at {self.settings.kafka.bootstrap}: {error or type(error).__name__}") from error
        self.scrape_seconds, self.looked_at = time.perf_counter() - began, self.clock()
        return found

    def close(self) -> None:
        """Close both clients; the windows stay."""
        self._ages.close()
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _look(self) -> list[LagRow]:
        if self._admin is None:
            self._admin = KafkaAdminClient(**options(self.settings.kafka))
        states = self._names()
        committed = self._committed(sorted(states))
        fresh = self._uncommitted(committed)
        places = sorted({place for _, place in (*committed, *fresh)})
        ends, starts = self._offsets(places, OffsetSpec.LATEST), self._offsets(places, OffsetSpec.EARLIEST)
        now = self.clock()
        self._describe(states, now)
        looked = committed | {pair: starts[pair[1]] for pair in fresh if pair[1] in starts}
        for pair, offset in looked.items():
            if pair[1] in ends:
                self._keep(
                    self.windows.setdefault(pair, deque()),
                    self._patience(pair[0]),
                    Sample(now, offset, ends[pair[1]], starts.get(pair[1], 0)),
                )
        for gone in [pair for pair in self.windows if pair not in looked]:
            del self.windows[gone]
        began = {(group, place.topic) for group, place in committed}
        # An empty partition beside others that are read says nothing.
        mute = {pair for pair in fresh if (pair[0], pair[1].topic) in began and ends.get(pair[1]) == starts.get(pair[1])}
        order = sorted(looked.items(), key=lambda one: (one[0] in fresh, one))
        shown = [(pair, offset) for pair, offset in order if pair[1] in ends and pair not in mute]
        # A record outside the log can't be read, and asking would move the consumer elsewhere.
        times = self._ages.of((*pair, at) for pair, at in shown if starts.get(pair[1], 0) <= at < ends[pair[1]])
        rows = [self._row(pair, now, times.get((pair[1], offset))) for pair, offset in shown]
        return [replace(row, committed=None) if pair in fresh else row for row, (pair, _) in zip(rows, shown, strict=True)]

    def _uncommitted(self, committed: Mapping[Pair, int]) -> set[Pair]:
        """What is expected and has no commit."""
        wanted = {self.settings.kafka.topic(group): topics for group, topics in self.expected.items()}
        pairs = {(group, self.settings.kafka.topic(name)) for group, topics in wanted.items() if self.wanted(group) for name in topics}
        counts = self._partitions({name for _, name in pairs})
        every = {(group, TopicPartition(name, number)) for group, name in pairs for number in range(counts.get(name, 0))}
        return every - committed.keys()

    def _partitions(self, names: set[str]) -> dict[str, int]:
        """How many each topic has that is there."""
        now = time.monotonic()
        if unsure := sorted(name for name in names if self._counts.get(name, (0, 0.0))[1] <= now):
            told = {row["name"]: len(row["partitions"]) for row in self._admin.describe_topics(unsure)}
            # One that isn't there may come at any moment.
            self._counts |= {name: (told.get(name, 0), now + COUNTED if told.get(name) else now) for name in unsure}
        return {name: self._counts[name][0] for name in names}

    def _patience(self, group: str) -> float:
        return max(self.settings.monitor.patience, ROUND if ROUNDS.search(group) else 0.0)

    def _keep(self, window: deque[Sample], patience: float, newest: Sample) -> None:
        """At least ``WINDOW`` looks, and no fewer than span the patience."""
        window.append(newest)
        while len(window) > WINDOW and window[1].at <= newest.at - patience:
            window.popleft()

    def _names(self) -> dict[str, str]:
        """Wanted groups that can commit offsets, with the state that the listing tells."""
        listed = self._admin.list_groups()
        kinds = {one["group_id"]: one for one in listed if one.get("protocol_type", "") in CONSUMERS}
        return {name: str(one.get("group_state") or "") for name, one in kinds.items() if self.wanted(name)}

    def _committed(self, names: list[str]) -> dict[Pair, int]:
        found = self._each("group", names, lambda some: self._admin.list_group_offsets(dict.fromkeys(some)))
        return {
            (name, place): told.offset
            for name, offsets in found.items()
            for place, told in offsets.items()
            if told.offset >= 0 and not INTERNAL.search(place.topic)
        }

    def _offsets(self, places: list[TopicPartition], spec: Any) -> dict[TopicPartition, int]:
        by_topic: dict[str, list[TopicPartition]] = {}
        for place in places:
            by_topic.setdefault(place.topic, []).append(place)

        def ask(topics: Iterable[str]) -> dict[TopicPartition, Any]:
            wanted = [place for topic in topics for place in by_topic[topic]]
            return dict(self._admin.list_partition_offsets(dict.fromkeys(wanted, spec)))

        return {place: told.offset for place, told in self._each("topic", list(by_topic), ask).items()}

    def _each(self, kind: str, names: list[str], ask: Callable[[list[str]], dict[Any, Any]]) -> dict[Any, Any]:
        """All in one call for each broker; where one of them spoils it (kafka-python raises on the first), one by one without it."""
        now = time.monotonic()
        self._left_out = {name: until for name, until in self._left_out.items() if until > now}
        names = [name for name in names if f"{kind} {name}" not in self._left_out]
        if not names:
            return {}
        try:
            return ask(names)
        except BrokerResponseError:
            found: dict[Any, Any] = {}
            for name in names:
                try:
                    found |= ask([name])
                except BrokerResponseError as error:
                    self.errors += 1
                    self._left_out[f"{kind} {name}"] = now + LEFT_OUT
                    log.warning("left_out", **{kind: name}, error=type(error).__name__, seconds=LEFT_OUT)
            return found

    def _describe(self, states: dict[str, str], now: float) -> None:
        told = self._each("group", sorted(states), self._admin.describe_groups)
        fresh = {}
        for name, state in states.items():
            answer = told.get(name)
            # DescribeGroups knows nothing of a group of the newer protocol (KIP-848); the listing's state must do.
            fresh[name] = after(self.groups.get(name), name, state, None if answer is None or answer.get("error") else answer, now)
        missing = filter(self.wanted, map(self.settings.kafka.topic, self.expected))
        self.groups = {name: Group(name, "Dead", 0) for name in missing} | fresh

    def _row(self, pair: Pair, now: float, record_time: float | None) -> LagRow:
        (name, place), samples, group = pair, list(self.windows[pair]), self.groups[pair[0]]
        newest, found = samples[-1], rates(samples)
        kept = newest.end - newest.start
        return LagRow(
            group=name,
            topic=place.topic,
            partition=place.partition,
            committed=newest.committed,
            end=newest.end,
            lag=newest.lag,
            lag_seconds=lag_seconds(samples, now, record_time),
            rate=found[1] if found else None,
            produced=found[0] if found else None,
            drain_seconds=drain_seconds(samples),
            state=judge(samples, group.inhabited, group.has_grace(now), self._patience(name)),
            retention_ratio=min(1.0, newest.lag / kept) if kept > 0 else None,
        )
