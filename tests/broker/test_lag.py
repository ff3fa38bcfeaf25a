from __future__ import annotations

import subprocess
import threading
import urllib.request

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from mailtide.jars import TOOLS, java, kafka_jars
from monitoring.collect import Collector
from monitoring.service import serve, wanted_groups
from monitoring.verdict import State
from schemas.config import MonitorSettings, Settings

pytestmark = pytest.mark.broker


def fill(settings: Settings, committed: dict[int, int], count: int = 10) -> str:
    """``count`` records in each of two partitions, and a group that committed so far; the group's name."""
    topic, group = settings.kafka.topic("customer.events"), settings.kafka.prefix + "mailtide-intake"
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    for n in range(count):
        for partition in (0, 1):
            producer.send(topic, str(n).encode(), partition=partition)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, group_id=group, enable_auto_commit=False)
    consumer.assign([TopicPartition(topic, partition) for partition in committed])
    consumer.commit({TopicPartition(topic, partition): OffsetAndMetadata(offset, "", -1) for partition, offset in committed.items()})
    consumer.close()
    return group


def test_figures_are_those_of_kafkas_own_tool(settings: Settings) -> None:
    group = fill(settings, {0: 3, 1: 10})
    collector = Collector(settings, wanted_groups(settings))
    rows = {row.partition: row for row in collector.look()}
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
    assert rows[0].lag_seconds is not None
    assert rows[0].lag_seconds >= 0
    assert rows[1].lag_seconds == 0.0


def test_no_row_where_nothing_is_committed(settings: Settings) -> None:
    fill(settings, {0: 3})
    collector = Collector(settings, wanted_groups(settings))
    assert [row.partition for row in collector.look()] == [0]
    collector.close()


def test_a_group_that_nobody_reads_for_is_stopped(settings: Settings) -> None:
    fill(settings, {0: 3})
    collector = Collector(settings, wanted_groups(settings))
    states = [collector.look()[0].state for _ in range(3)]
    collector.close()
    assert states[-1] is State.STOP


def test_prometheus_reads_it(settings: Settings) -> None:
    fill(settings, {0: 3})
    settings = msgspec.structs.replace(settings, monitor=MonitorSettings(port=0, interval=0.1))
    halt, listening = threading.Event(), threading.Event()
    port: list[int] = []

    def ready(number: int) -> None:
        port.append(number)
        listening.set()

    thread = threading.Thread(target=serve, args=(settings, halt, ready))
    thread.start()
    try:
        assert listening.wait(30)
        text = ""
        while "kafka_lag_records{" not in text:
            with urllib.request.urlopen(f"http://127.0.0.1:{port[0]}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        assert f'kafka_lag_records{{group="{settings.kafka.prefix}mailtide-intake",partition="0"' in text
        assert " nan" not in text.lower()
        with urllib.request.urlopen(f"http://127.0.0.1:{port[0]}/health/ready", timeout=10) as answer:
            assert answer.status == 200
    finally:
        halt.set()
        thread.join(30)
