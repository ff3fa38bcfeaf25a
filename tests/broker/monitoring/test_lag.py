from __future__ import annotations

import asyncio
import io
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.structs import OffsetAndMetadata
from rich.console import Console

from mailtide.cli import lag
from mailtide.local import broker
from mailtide.local.jars import TOOLS, java, kafka_jars
from monitoring.http import Probe
from monitoring.mail import MailFollower
from monitoring.poll import LagPoller, LagRow
from monitoring.service import serve, wanted_groups
from monitoring.verdict import State
from schemas.config import MonitorSettings, Settings
from schemas.mail import Delivery, Draft, Facts, Intent, Source, encode, iso
from schemas.topics import DELIVERIES, DRAFTS, INTENTS, READERS
from transport.clients import producer

pytestmark = pytest.mark.broker


def fill(settings: Settings, committed: dict[int, int], count: int = 10) -> str:
    """``count`` records in each of two partitions, and a group that committed so far; the group's name."""
    topic, group = settings.kafka.topic("customer.events"), settings.kafka.prefix + "mailtide-intake"
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    for n in range(count):
        for partition in (0, 1):
            producer.send(topic, str(n).encode(), partition=partition)
    producer.close()
    commit(settings, group, {TopicPartition(topic, partition): offset for partition, offset in committed.items()})
    return group


def commit(settings: Settings, group: str, offsets: dict[TopicPartition, int]) -> None:
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, group_id=group, enable_auto_commit=False)
    consumer.assign(list(offsets))
    consumer.commit({place: OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()})
    consumer.close()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
    return value


@contextmanager
def watched(settings: Settings) -> Iterator[str]:
    """A monitor in a thread; its URL."""
    halt, probes = threading.Event(), SimpleQueue[Probe]()
    thread = threading.Thread(target=serve, args=(settings, halt, probes.put))
    thread.start()
    try:
        yield probes.get(timeout=30).url
    finally:
        halt.set()
        thread.join(60)


def told(collector: LagPoller) -> list[LagRow]:
    """The rows of commits; those of groups that have none yet stand behind them."""
    return [row for row in collector.look() if row.committed is not None]


def test_figures_are_those_of_kafkas_own_tool(settings: Settings) -> None:
    group = fill(settings, {0: 3, 1: 10})
    collector = LagPoller(settings, wanted_groups(settings))
    rows: dict[int, LagRow] = {}
    while not rows or rows[0].lag_seconds is None:  # a busy machine may not read the record within the first look's budget
        rows = {row.partition: row for row in told(collector)}
    collector.close()
    said = subprocess.run(
        [
            java(),
            "-cp",
            ":".join(map(str, kafka_jars(TOOLS))),
            "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
            "--bootstrap-server",
            settings.kafka.bootstrap,
            "--describe",
            "--group",
            group,
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    theirs = {
        int(cells[2]): tuple(map(int, cells[3:6])) for cells in map(str.split, said.splitlines()) if len(cells) > 5 and cells[2].isdigit()
    }
    assert theirs == {partition: (row.committed, row.end, row.lag) for partition, row in rows.items()}
    assert 0 <= rows[0].lag_seconds < 600
    assert rows[1].lag_seconds == 0.0


def test_what_is_not_committed_yet_is_lag_too(settings: Settings) -> None:
    """A worker that never gets to its first commit must be seen by the alerts: without a row it was not."""
    group = fill(settings, {0: 3})
    collector = LagPoller(settings, wanted_groups(settings))
    for _ in range(2):
        collector.look()
    rows = collector.look()
    collector.close()
    assert [(row.partition, row.committed, row.lag, row.state) for row in rows if row.group == group] == [
        (0, 3, 7, State.STOP),
        (1, None, 10, State.STOP),
    ]
    others = [row for row in rows if row.group != group]
    assert {row.group.removeprefix(settings.kafka.prefix) for row in others} == READERS.keys() - {"mailtide-intake"}
    assert {(row.committed, row.lag, row.state) for row in others} == {(None, 0, State.OK)}


def test_a_group_that_nobody_reads_for_is_stopped(settings: Settings) -> None:
    fill(settings, {0: 3})
    collector = LagPoller(settings, wanted_groups(settings))
    states = [collector.look()[0].state for _ in range(3)]
    collector.close()
    assert states[-1] is State.STOP


def test_a_group_that_works_in_rounds_has_a_rounds_patience(settings: Settings) -> None:
    """The trainer commits only between refits: that is no stall, until it takes longer than a refit may."""
    fill(settings, {})
    topic, names = settings.kafka.topic("customer.events"), ("mailtide-writer", "mailtide-trainer")
    server = {"bootstrap_servers": settings.kafka.bootstrap, "metadata_max_age_ms": 500}
    members = [KafkaConsumer(**server, group_id=settings.kafka.prefix + name) for name in names]
    now = time.time()
    collector = LagPoller(settings, wanted_groups(settings), clock=lambda: now)

    def states() -> dict[str, State]:
        return {row.group.removeprefix(settings.kafka.prefix): row.state for row in told(collector) if row.partition == 0}

    try:
        for member in members:
            until(lambda member=member: member.partitions_for_topic(topic))  # who joins before it knows the topic is given nothing of it
            member.subscribe([topic])
            until(lambda member=member: member.poll(50) is not None and member.assignment())
            member.commit({TopicPartition(topic, 0): OffsetAndMetadata(1, "", -1)})
        until(lambda: len(states()) == len(names))
        now += 400.0  # past the grace of a group that just formed
        states()
        for seconds, expected in ((61.0, (State.STALL, State.UNKNOWN)), (900.0, (State.STALL, State.STALL))):
            now += seconds
            assert tuple(map(states().get, names)) == expected
    finally:
        collector.close()
        for member in members:
            member.close()


def test_prometheus_reads_it(settings: Settings) -> None:
    fill(settings, {0: 3})
    settings = msgspec.structs.replace(settings, monitor=MonitorSettings(port=0, interval=0.1))
    with watched(settings) as url:
        until(lambda: get(url + "/health/ready")[0] == 200)
        assert get(url + "/health/live")[0] == 200
        assert get(url + "/elsewhere")[0] == 404
        text = get(url + "/metrics")[1]
        assert f'kafka_lag_records{{group="{settings.kafka.prefix}mailtide-intake",partition="0"' in text
        assert "kafka_lag_scrape_success 1.0" in text
        assert " nan" not in text.lower()
        assert " -1" not in text


def test_one_spoilt_topic_or_group_hides_no_other(settings: Settings) -> None:
    """A group may have committed in a topic that is deleted since; kafka-python raises on the whole call then."""
    group = fill(settings, {0: 3})
    gone = settings.kafka.prefix + "gone"
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap)
    admin.create_topics([NewTopic(gone, 1, 1)])
    commit(settings, group, {TopicPartition(gone, 0): 0})
    collector = LagPoller(settings, wanted_groups(settings))
    try:
        assert {row.topic for row in told(collector)} == {gone, settings.kafka.topic("customer.events")}
        admin.delete_topics([gone])
        rows = until(lambda: [rows := told(collector)] and len({row.topic for row in rows}) == 1 and rows)
        assert [(row.topic, row.lag) for row in rows] == [(settings.kafka.topic("customer.events"), 7)]
    finally:
        collector.close()
        admin.close()


def test_data_that_is_lost_is_called_so(settings: Settings) -> None:
    fill(settings, {0: 3, 1: 25})  # partition 1 ends at 10: these commits are of an earlier log
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap)
    admin.delete_records({TopicPartition(settings.kafka.topic("customer.events"), 0): 6})
    admin.close()
    collector = LagPoller(settings, wanted_groups(settings))
    rows = told(collector)
    collector.close()
    assert [(row.partition, row.state, row.lag) for row in rows] == [(0, State.DATA_LOSS, 7), (1, State.DATA_LOSS, 0)]
    assert all(row.lag_seconds is None or row.lag == 0 for row in rows)  # the record itself is gone


def test_any_groups_and_the_age_of_each_ones_own_record(settings: Settings) -> None:
    """Two groups at different places of one partition; the records' own times say how old each is."""
    topic = settings.kafka.prefix + "others"
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap)
    admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"message.timestamp.type": "CreateTime"})])
    admin.close()
    now = time.time()
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    for age in (5000, 4000, 3000):
        producer.send(topic, b"x", partition=0, timestamp_ms=int((now - age) * 1000))
    producer.close()
    for offset, group in enumerate(("anybody", "somebody")):
        commit(settings, settings.kafka.prefix + group, {TopicPartition(topic, 0): offset})
    settings = msgspec.structs.replace(settings, monitor=MonitorSettings(groups=settings.kafka.prefix.replace(".", r"\.") + ".*body"))
    collector = LagPoller(settings, wanted_groups(settings), clock=lambda: now)
    rows = until(lambda: [rows := collector.look()] and all(row.lag_seconds is not None for row in rows) and rows)
    collector.close()
    assert [(row.lag, round(row.lag_seconds or 0)) for row in rows] == [(3, 5000), (2, 4000)]
    assert [row.retention_ratio for row in rows] == [1.0, pytest.approx(2 / 3)]


async def test_mail_that_waits_is_counted_past_transaction_markers(settings: Settings) -> None:
    """Outcomes are written in transactions, whose markers are no records: the follower must still know that it has read all."""
    now = time.time()
    intents = [Intent(f"i{n}", "c", "welcome", "o", iso(now), iso(now + 3600), "", Facts(), Source("t", 0, 0), iso(now)) for n in range(3)]
    client = await producer(settings.kafka, transactional_id=settings.kafka.prefix + "test")
    async with client.transaction():
        for intent in intents:
            await client.send(settings.kafka.topic(INTENTS), encode(intent), b"c", partition=0)
        await client.send(settings.kafka.topic(DRAFTS), encode(Draft(intents[1], "", "template", "guided", "base", 1)), b"c", partition=0)
    async with client.transaction():
        ended = Delivery("i2", "c", "welcome", "", "base", "template", "guided", "sent", "m", iso(now), iso(now), iso(now))
        await client.send(settings.kafka.topic(DELIVERIES), encode(ended), b"c", partition=0)
    await client.stop()
    follower = MailFollower(settings)
    found = follower.look(now + 1, 60.0)
    follower.close()
    assert found is not None
    assert [(one.stage, one.trigger, one.intents) for one in found] == [("writer", "welcome", 1), ("sender", "welcome", 1)]


def test_a_broker_that_is_gone_leaves_no_figures_behind(settings: Settings) -> None:
    settings = msgspec.structs.replace(
        settings,
        monitor=MonitorSettings(port=0, interval=0.1),
        kafka=msgspec.structs.replace(settings.kafka, bootstrap=f"127.0.0.1:{broker.free_port()}"),
    )
    with watched(settings) as url:
        until(lambda: "kafka_lag_scrape_errors_total 0.0" not in get(url + "/metrics")[1])
        text = get(url + "/metrics")[1]
        assert "kafka_lag_records{" not in text
        assert "kafka_lag_scrape_success 0.0" in text
        assert get(url + "/health/ready")[0] == 503
        assert get(url + "/health/live")[0] == 200


def test_a_second_monitor_on_the_machine_takes_a_free_port(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    first = msgspec.structs.replace(settings, monitor=MonitorSettings(port=0, interval=0.1))
    with watched(first) as url:
        taken = int(url.rsplit(":", 1)[1])
        with watched(msgspec.structs.replace(settings, monitor=MonitorSettings(port=taken, interval=0.1))) as second:
            assert second != url
            assert get(second + "/metrics")[0] == get(url + "/metrics")[0] == 200
    assert capsys.readouterr().out.count("port_taken") == 1


async def test_lag_tells_both_tables_and_json_has_the_contracts_rows(settings: Settings) -> None:
    fill(settings, {0: 3})
    now = time.time()
    late = Intent("i0", "c", "win_back", "o", iso(now - 60), iso(now - 1), "", Facts(), Source("t", 0, 0), iso(now - 60))
    client = await producer(settings.kafka)
    await client.send_and_wait(settings.kafka.topic(INTENTS), encode(late), b"c", partition=0)
    await client.stop()
    rows, waiting = await asyncio.to_thread(lag.look, settings, None)
    said = io.StringIO()
    Console(file=said, width=200).print(lag.tables(rows, waiting))
    assert "Consumer lag" in said.getvalue()
    assert "Mail that waits" in said.getvalue()
    assert "STOP" in said.getvalue()  # nobody is in the group
    document = json.loads(json.dumps(lag.plain(rows)))
    wanted = {"group", "topic", "partition", "committed", "end", "lag", "lag_seconds", "rate", "drain_seconds", "state"}
    assert wanted <= document[0].keys()
    assert (document[0]["lag"], document[0]["rate"], document[0]["drain_seconds"], document[0]["state"]) == (7, 0.0, None, "STOP")
    mail = lag.plain(waiting)
    assert mail[0]["oldest_seconds"] >= 60
    assert mail == [{"stage": "writer", "trigger": "win_back", "intents": 1, "oldest_seconds": mail[0]["oldest_seconds"], "will_expire": 1}]
