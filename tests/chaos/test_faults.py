"""The quick faults of `make chaos`, in one flock: nothing is lost, nothing comes twice, nobody's counts or features differ."""

from __future__ import annotations

import msgspec
import pytest

from schemas.config import Settings
from tests.chaos.faults import FAULTS, MOODS, endure, suffer
from transport import topics

pytestmark = [pytest.mark.broker, pytest.mark.chaos, pytest.mark.timeout(900)]  # a busy machine starts a worker in half a minute

QUICK = (
    "kill -9 after output",
    "kill -9 after claim",
    "kill -9 after DATA",
    "poison messages in a row",
    "corrupt adapters",
    "stuck: a blocked event loop",
)


def test_what_is_counted_and_sent_stands(settings: Settings) -> None:
    moods, _ = MOODS["SMTP drops after DATA"]
    found = endure(settings, [(FAULTS[name].harm, seed) for seed, name in enumerate(QUICK, 1)], moods)
    assert found.outcomes["sent"] > 0
    assert found.outcomes["unknown"] > 0
    assert found.differ == []
    assert found.report.breaches == []
    assert (found.report.open, found.lost, found.twice) == (0, 0, 0)


def test_three_workers_share_twelve_partitions(settings: Settings) -> None:
    kafka = msgspec.structs.replace(settings.kafka, prefix=f"{settings.kafka.prefix}twelve.", partitions=12)
    twelve = msgspec.structs.replace(settings, kafka=kafka)
    topics.create(twelve)
    assert suffer("three workers on twelve partitions", twelve, [1]).clean
