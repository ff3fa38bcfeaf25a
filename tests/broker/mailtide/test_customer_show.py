"""``mailtide customer show`` as a process of its own, on topics that hold what nobody should write there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import msgspec
import pytest
from kafka import KafkaProducer

from models.customer.state import CustomerState, dump
from schemas.config import Settings
from schemas.mail import Facts, Intent, Source
from schemas.topics import CUSTOMERS, DELIVERIES, INTENTS
from transport.blocking import partition_of

pytestmark = pytest.mark.broker
CUSTOMER = "A2-x[/b]y :smile:"


def show(settings: Settings, *more: str) -> subprocess.CompletedProcess[str]:
    told = {"MAILTIDE_HOME": settings.home, "MAILTIDE_KAFKA": settings.kafka.bootstrap, "MAILTIDE_KAFKA_PREFIX": settings.kafka.prefix}
    words = [sys.executable, "-m", "mailtide", "customer", "show", CUSTOMER, *more]
    return subprocess.run(words, env=os.environ | told, capture_output=True, text=True, check=False, timeout=120)


def publish(settings: Settings, *values: tuple[str, bytes | None]) -> None:
    place = partition_of(CUSTOMER, settings.kafka.partitions)
    with KafkaProducer(bootstrap_servers=settings.kafka.bootstrap) as client:
        for topic, value in values:
            client.send(settings.kafka.topic(topic), value, key=CUSTOMER.encode(), partition=place).get(60)


def intent(occurrence: str) -> bytes:
    at = "2026-01-05T10:15:00Z"
    return msgspec.json.encode(
        Intent("i1", CUSTOMER, "welcome[/b]", occurrence, at, at, "c0", Facts(), Source("customer.events", 0, 0), at)
    )


def test_values_are_printed_as_they_are_and_what_can_t_be_read_is_named_and_passed_over(settings: Settings) -> None:
    publish(settings, (INTENTS, b"{"), (INTENTS, None), (INTENTS, intent("[bold]1")), (DELIVERIES, b"\xff"), (DELIVERIES, None))
    told = show(settings)
    assert told.returncode == 0, told.stderr
    assert CUSTOMER in told.stdout
    assert "welcome[/b]" in told.stdout
    place = {"partition": partition_of(CUSTOMER, settings.kafka.partitions), "offset": 0}
    said = [json.loads(line) for line in told.stderr.splitlines()]
    named = [{name: line[name] for name in ("topic", "partition", "offset")} for line in said]
    assert named == [{"topic": settings.kafka.topic(topic), **place} for topic in (INTENTS, DELIVERIES)]
    assert json.loads(show(settings, "--json").stdout)["intents"][0]["occurrence"] == "[bold]1"


def test_a_state_that_can_t_be_read_is_one_line(settings: Settings) -> None:
    publish(settings, (CUSTOMERS, dump(CustomerState())[:9]))
    told = show(settings)
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (1, "", 1), told.stderr
    assert told.stderr.startswith(f"mailtide: the state of customer {CUSTOMER!r} on {settings.kafka.topic(CUSTOMERS)} partition ")
