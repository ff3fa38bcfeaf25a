from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer

from mailtide.local import broker
from schemas.config import KafkaSettings, Settings
from schemas.errors import KafkaUnavailable
from transport import topics

pytestmark = pytest.mark.broker


def test_topics_are_made_once_and_match_their_declaration(settings: Settings) -> None:
    assert topics.create(settings) == []
    assert topics.differences(settings) == []


def test_a_difference_is_named(settings: Settings) -> None:
    other = Settings(
        home=settings.home, kafka=KafkaSettings(bootstrap=settings.kafka.bootstrap, prefix=settings.kafka.prefix, partitions=5)
    )
    assert any("customer.events: 2 partitions, declared 5" in line for line in topics.differences(other))


def test_data_outlives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dashed = SimpleNamespace(uuid4=lambda: uuid.UUID(bytes=b"\xfb" * 16))  # one cluster id in 64 begins with "-"
    monkeypatch.setattr(broker, "uuid", dashed)
    home = Settings(home=str(tmp_path))
    with broker.running(home) as first:
        topics.create(first)
        producer = KafkaProducer(bootstrap_servers=first.kafka.bootstrap)
        producer.send("customer.events", b"kept").get(10)
        producer.close()
        with broker.running(home) as second:  # another user of the same home shares it
            assert second.kafka.bootstrap == first.kafka.bootstrap
    with broker.running(home) as again:
        consumer = KafkaConsumer(
            "customer.events", bootstrap_servers=again.kafka.bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=60000
        )
        assert next(consumer).value == b"kept"
        consumer.close()


def test_no_broker_is_one_clear_line() -> None:
    with (
        pytest.raises(KafkaUnavailable, match="no Kafka answers at 127"),
        broker.running(Settings(kafka=KafkaSettings(bootstrap="127.0.0.1:1"))),
    ):
        pass


def test_no_orphan_when_the_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "from mailtide.local import broker\nfrom schemas.config import Settings\nimport sys, time\n"
        f"with broker.running(Settings(home={str(tmp_path)!r})) as s:\n    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    children = psutil.Process(parent.pid).children()
    assert children
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "the broker outlived its parent"
        time.sleep(0.05)
