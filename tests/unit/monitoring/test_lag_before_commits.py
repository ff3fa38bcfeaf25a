"""Groups of ours stand in the lag's table before their first commit: with all that is kept, and no commit."""

from __future__ import annotations

import importlib
import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, GroupAuthorizationFailedError
from rich.console import Console

from mailtide.cli import lag
from monitoring import poll
from monitoring.metrics import Series
from monitoring.poll import LagPoller, LagRow
from monitoring.service import wanted_groups
from monitoring.verdict import State
from schemas.config import KafkaSettings, Settings
from schemas.errors import KafkaUnavailable
from schemas.topics import DRAFTS, EVENTS, INTENTS, READERS


class Cluster:
    """An admin client's answers: one group that committed in a partition of two topics with three partitions each."""

    ends = (10, 7, 0)

    def list_groups(self) -> list[dict[str, str]]:
        return [{"group_id": "p.mailtide-intake", "protocol_type": "consumer", "group_state": "Empty"}]

    def list_group_offsets(self, groups: dict[str, None]) -> dict[str, Any]:
        return {name: {TopicPartition("p." + EVENTS, 0): SimpleNamespace(offset=4)} for name in groups}

    def __init__(self) -> None:
        self.topics = {"p." + EVENTS, "p." + DRAFTS}
        self.asked: list[list[str]] = []

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        self.asked.append(names)
        return [{"name": name, "partitions": [0, 1, 2] if name in self.topics else []} for name in names]

    def list_partition_offsets(self, wanted: dict[TopicPartition, Any]) -> dict[TopicPartition, Any]:
        return {
            place: SimpleNamespace(offset=self.ends[place.partition] if spec == OffsetSpec.LATEST else min(2, self.ends[place.partition]))
            for place, spec in wanted.items()
        }

    def describe_groups(self, names: list[str]) -> dict[str, Any]:
        return {name: {"group_state": "Empty", "members": []} for name in names}


def collector_of(cluster: Cluster, group: str | None = None, **expected: Any) -> LagPoller:
    settings = Settings(kafka=KafkaSettings(prefix="p."))
    collector = LagPoller(settings, wanted_groups(settings, group), clock=lambda: 0.0, **expected)
    collector._admin = cluster
    collector._ages = SimpleNamespace(of=lambda asked: dict.fromkeys(((place, at) for _, place, at in asked), 0.0))  # type: ignore[assignment]
    return collector


def looked(group: str | None = None, **expected: Any) -> list[LagRow]:
    collector = collector_of(Cluster(), group, **expected)
    for _ in range(2):
        collector.look()
    return collector.look()


def test_rows_before_the_first_commit_come_last_with_all_that_is_kept() -> None:
    rows = looked()
    told = [(row.group.removeprefix("p.mailtide-"), row.topic.removeprefix("p."), row.partition, row.committed, row.lag) for row in rows]
    assert told == [
        ("intake", EVENTS, 0, 4, 6),
        ("intake", EVENTS, 1, None, 5),  # its empty third partition says nothing
        ("sender", DRAFTS, 0, None, 8),
        ("sender", DRAFTS, 1, None, 5),
        ("sender", DRAFTS, 2, None, 0),
    ]
    assert [row.state for row in rows] == [State.STOP] * 4 + [State.OK]
    said = io.StringIO()
    Console(file=said, width=200).print(lag.tables(rows, ()))
    assert said.getvalue().count("no commit yet") == 4


def test_a_group_that_is_asked_for_is_alone_and_groups_of_others_keep_to_commits() -> None:
    assert {row.group for row in looked("p.mailtide-sender")} == {"p.mailtide-sender"}
    assert [(row.partition, row.committed) for row in looked(expected={})] == [(0, 4)]


def test_a_metric_has_no_commit_that_is_none_and_every_other_figure() -> None:
    collector = collector_of(Cluster(), "p.mailtide-sender")
    series = Series(collector)
    for _ in range(3):
        series.rows = collector.look()
    found = {family.name: {tuple(one.labels.values()): one.value for one in family.samples} for family in series.collect()}
    assert found["kafka_lag_records"][("p.mailtide-sender", "p." + DRAFTS, "1")] == 5
    assert found["kafka_lag_status"][("p.mailtide-sender", "p." + DRAFTS, "1", "STOP")] == 1
    assert found["kafka_lag_committed"] == {}
    assert set(found["kafka_lag_group_members"]) == {("p.mailtide-sender",)}


def test_partitions_are_counted_once_a_minute_and_topics_that_come_are_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    collector, late = collector_of(cluster), "p." + INTENTS
    for _ in range(3):
        assert not [row for row in collector.look() if row.topic == late]
    assert all(late in names for names in cluster.asked)
    assert "p." + EVENTS not in {name for names in cluster.asked[1:] for name in names}
    cluster.topics.add(late)
    assert [row.partition for row in collector.look() if row.topic == late] == [0, 1, 2]
    monkeypatch.setattr(poll, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 61.0, perf_counter=time.perf_counter))
    collector.look()
    assert "p." + EVENTS in cluster.asked[-1]


@pytest.mark.parametrize(
    "module", ["streams.intake.stage", "streams.clusters.stage", "streams.writer.stage", "streams.sender.stage", "training.membership"]
)
def test_the_readers_are_the_groups_that_the_stages_join(module: str) -> None:
    assert importlib.import_module(module).GROUP in READERS


def test_a_broker_that_still_reads_its_groups_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "BETWEEN", 0.0)
    told: list[Exception] = [CoordinatorLoadInProgressError(), CoordinatorNotAvailableError(), GroupAuthorizationFailedError()]

    def look() -> None:
        if told:
            raise KafkaUnavailable("no Kafka answers") from told.pop(0)

    with pytest.raises(KafkaUnavailable):
        lag._first(SimpleNamespace(look=look))  # type: ignore[arg-type]
    assert told == []
    lag._first(SimpleNamespace(look=look))  # type: ignore[arg-type]
