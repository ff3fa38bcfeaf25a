"""The examples do what their headers say, run as a reader would run them."""

from __future__ import annotations

import os
import smtplib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from kafka import KafkaConsumer, TopicPartition

from schemas.config import Settings
from schemas.events import Event, decode
from schemas.topics import EVENTS
from tests.paths import ROOT
from transport.clients import partition_of

EXAMPLES = ROOT / "examples"
FAR = 4e9  # seconds: a wall clock for which no event lies in the future
MAIL = "From: a@shop.example.com\r\nTo: b@example.com\r\nMessage-ID: <1@shop.example.com>\r\nSubject: Hello there\r\n\r\nA line.\r\n"


def run(settings: Settings, *command: str) -> None:
    kafka = settings.kafka
    environment = {name: value for name, value in os.environ.items() if name != "KAFKA_HOME"}
    environment |= {"MAILTIDE_KAFKA": kafka.bootstrap, "MAILTIDE_KAFKA_PREFIX": kafka.prefix, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def events(settings: Settings) -> list[Event]:
    """All that lies on the events' topic; none lies where intake would forward it from."""
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    try:
        places = [TopicPartition(settings.kafka.topic(EVENTS), number) for number in range(settings.kafka.partitions)]
        consumer.assign(places)
        left = sum(consumer.end_offsets(places).values())
        read: list[Event] = []
        while left > 0:
            for records in consumer.poll(timeout_ms=1000).values():
                left -= len(records)
                for record in records:
                    event = decode(record.value, FAR, record.partition, record.offset)
                    assert isinstance(event, Event), event
                    assert record.partition == partition_of(event.customer.encode(), settings.kafka.partitions)
                    assert record.key == event.customer.encode()
                    read.append(event)
        return read
    finally:
        consumer.close()


@pytest.mark.broker
def test_events_from_python_lie_where_mailtide_looks_for_them(settings: Settings) -> None:
    run(settings, sys.executable, "examples/publish_events.py")
    published = events(settings)
    assert sorted((event.customer, event.kind) for event in published) == [
        ("c-1", "Order Completed"),
        ("c-1", "identify"),
        ("c-2", "identify"),
        ("c-3", "identify"),
    ]
    assert [event.kind for event in published if event.customer == "c-1"] == ["identify", "Order Completed"]


@pytest.mark.broker
def test_events_from_the_console_producer_lie_where_mailtide_looks_for_them(settings: Settings) -> None:
    run(settings, "bash", "examples/console_producer.sh")
    published = events(settings)
    assert sorted((event.customer, event.kind) for event in published) == [
        ("c-4", "Product Added"),
        ("c-4", "identify"),
        ("c-5", "Product Viewed"),
    ]


@pytest.fixture
def mail_server() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(EXAMPLES / "own_mail_server.py"), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process
    process.terminate()
    process.communicate(timeout=10)


def test_the_mail_server_prints_what_it_gets(mail_server: subprocess.Popen[str]) -> None:
    assert mail_server.stdout is not None
    name, _, url = mail_server.stdout.readline().strip().partition("=")
    assert name == "MAILTIDE_SMTP"
    with smtplib.SMTP("127.0.0.1", int(url.rpartition(":")[2])) as client:
        assert client.sendmail("a@shop.example.com", ["b@example.com"], MAIL) == {}
    lines = [mail_server.stdout.readline().strip() for _ in range(6)]
    assert "Subject: Hello there" in lines
    assert lines[-1] == "A line."
