"""One look at a cluster: committed offsets first, log ends second, a row for each pair that committed something."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaError

from monitoring.verdict import Sample, State, drain_seconds, judge, lag_seconds, rates
from schemas.config import Settings, kafka_python_options
from schemas.errors import KafkaUnavailable

WINDOW = 10  # looks that a verdict is made from
RECORD_BUDGET = 64  # partitions a cycle whose next record is read for its timestamp
# Faust's own topics: a changelog is read only in recovery, and nobody reads the others by offset.
INTERNAL = re.compile(r"(-changelog|-__assignor-__leader)$|^f-reply-")
REBALANCING = {"PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling"}


@dataclass(frozen=True, slots=True)
class Row:
    """One group's reading of one partition. None: not known, never NaN or -1."""

    group: str
    topic: str
    partition: int
    committed: int
    end: int
    lag: int
    lag_seconds: float | None
    rate: float | None  # consumed records a second
    produced: float | None
    drain_seconds: float | None
    state: State
    retention_ratio: float | None  # 1 means that retention is about to take what is not read


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group as its coordinator describes it."""

    name: str
    state: str
    members: int
    rebalances: int


@dataclass
class Collector:
    """Keeps the windows between looks. ``wanted`` decides which groups are looked at."""

    settings: Settings
    wanted: Callable[[str], bool]
    clock: Callable[[], float] = time.time
    windows: dict[tuple[str, str, int], deque[Sample]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    scrape_seconds: float = 0.0
    errors: int = 0
    _admin: Any = None
    _consumer: Any = None
    _times: dict[tuple[str, int, int], float] = field(default_factory=dict)

    def look(self) -> list[Row]:
        """One cycle; KafkaUnavailable where no broker answers."""
        began = time.perf_counter()
        try:
            found = self._look()
        except KafkaError as error:
            self.errors += 1
            self.close()
            raise KafkaUnavailable(f"no Kafka answers at {self.settings.kafka.bootstrap}: {error}") from error
        self.scrape_seconds = time.perf_counter() - began
        return found

    def close(self) -> None:
        """Close both clients; the windows stay."""
        for client in (self._admin, self._consumer):
            if client is not None:
                client.close()
        self._admin = self._consumer = None

    def _look(self) -> list[Row]:
        if self._admin is None:
            options = kafka_python_options(self.settings.kafka)
            self._admin = KafkaAdminClient(**options)
            self._consumer = KafkaConsumer(**options, enable_auto_commit=False, max_partition_fetch_bytes=4096, fetch_max_wait_ms=50)
        names = sorted(name for name in self._names() if self.wanted(name))
        committed: dict[tuple[str, TopicPartition], int] = {}
        for name, offsets in (self._admin.list_group_offsets(dict.fromkeys(names)) if names else {}).items():
            for place, offset in offsets.items():
                if offset.offset >= 0 and not INTERNAL.search(place.topic):
                    committed[name, place] = offset.offset
        places = sorted({place for _, place in committed})
        ends, starts = self._offsets(places, OffsetSpec.LATEST), self._offsets(places, OffsetSpec.EARLIEST)
        self._describe(names)
        now = self.clock()
        for (name, place), offset in committed.items():
            if place in ends:
                window = self.windows.setdefault((name, place.topic, place.partition), deque(maxlen=WINDOW))
                window.append(Sample(now, offset, ends[place], starts.get(place, 0)))
        for gone in self.windows.keys() - {(name, place.topic, place.partition) for name, place in committed}:
            del self.windows[gone]
        times = self._record_times(committed, ends)
        return [self._row(name, place, now, times.get(place_key)) for (name, place), place_key in self._keys(committed) if place in ends]

    def _keys(self, committed: dict[tuple[str, TopicPartition], int]) -> Iterable[tuple[tuple[str, TopicPartition], tuple[str, int, int]]]:
        return (((name, place), (place.topic, place.partition, offset)) for (name, place), offset in sorted(committed.items()))

    def _names(self) -> list[str]:
        return [group["group_id"] if isinstance(group, dict) else group[0] for group in self._admin.list_groups()]

    def _offsets(self, places: list[TopicPartition], spec: Any) -> dict[TopicPartition, int]:
        if not places:
            return {}
        found = self._admin.list_partition_offsets(dict.fromkeys(places, spec))
        return {place: at.offset for place, at in found.items()}

    def _describe(self, names: list[str]) -> None:
        described = self._admin.describe_groups(names) if names else {}
        for name, told in described.items() if isinstance(described, dict) else [(one["group_id"], one) for one in described]:
            state = str(told.get("group_state") or told.get("state") or "Unknown")
            before = self.groups.get(name)
            turned = before is not None and state in REBALANCING and before.state not in REBALANCING
            self.groups[name] = Group(name, state, len(told.get("members") or ()), (before.rebalances if before else 0) + turned)
        for gone in self.groups.keys() - set(names):
            del self.groups[gone]

    def _record_times(
        self, committed: dict[tuple[str, TopicPartition], int], ends: dict[TopicPartition, int]
    ) -> dict[tuple[str, int, int], float]:
        """Timestamps (seconds) of the next records to read, cached, a bounded number of new ones each cycle."""
        wanted = {(place.topic, place.partition, offset): place for (_, place), offset in committed.items() if offset < ends.get(place, 0)}
        self._times = {key: at for key, at in self._times.items() if key in wanted}
        missing = [key for key in sorted(wanted) if key not in self._times][:RECORD_BUDGET]
        for topic, partition, offset in missing:
            place = TopicPartition(topic, partition)
            self._consumer.assign([place])
            self._consumer.seek(place, offset)
            batch = self._consumer.poll(timeout_ms=300, max_records=1).get(place)
            if batch:
                self._times[topic, partition, offset] = batch[0].timestamp / 1000
        return self._times

    def _row(self, name: str, place: TopicPartition, now: float, record_time: float | None) -> Row:
        samples = list(self.windows[name, place.topic, place.partition])
        newest, group = samples[-1], self.groups.get(name)
        found = rates(samples)
        kept = newest.end - newest.start
        return Row(
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
            state=judge(samples, group.members if group else 0, group is not None and group.state in REBALANCING),
            retention_ratio=min(1.0, newest.lag / kept) if kept > 0 else None,
        )
