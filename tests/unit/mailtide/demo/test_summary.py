"""What the demo clears away before, and what it says when little came of it."""

from __future__ import annotations

import fcntl
import random
from pathlib import Path

import pytest

from mailtide.demo import run
from mailtide.demo.run import prepare
from mailtide.demo.summary import missing
from models.learning.clusters import FEATURES, FIRST, ClusterLearner
from schemas.config import Settings
from schemas.errors import MailtideError


def test_a_home_is_cleared_unless_its_kafka_is_in_use_and_locks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LETTING_GO", 0.0)
    settings = Settings(home=str(tmp_path))
    prepare(settings)
    for name in ("kafka/data", "run/kafka.lock", "run/writer-w0.json", "outbox/1.eml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with (tmp_path / "run" / "kafka.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MailtideError, match="another process uses the Kafka of"):
            prepare(settings)
        assert (tmp_path / "kafka" / "data").exists()
    prepare(settings)
    assert {file.name for file in tmp_path.rglob("*")} == {"demo.started", "run", "kafka.lock"}


@pytest.mark.parametrize(
    ("clusters", "releases", "taught", "said"),
    [
        (0, 0, 0, ["no clusters: the first come with 100 feature vectors of 10 customers, and 6 were replayed", "no releases: each is"]),
        (5, 0, 11, ["no releases: a refit needs 12 mails to one cluster, and the most were 11"]),
        (5, 0, 12, ["no releases: no refit passed the gate in time"]),
        (5, 1, 12, []),
    ],
)
def test_a_replay_that_came_to_little_says_why(clusters: int, releases: int, taught: int, said: list[str]) -> None:
    lines = missing(6, clusters, releases, taught, 12)
    assert len(lines) == len(said)
    assert all(line.startswith(begin) for line, begin in zip(lines, said, strict=True)), lines


@pytest.mark.parametrize(("customers", "clusters"), [(9, 0), (10, 5)])
def test_so_many_customers_it_takes(customers: int, clusters: int) -> None:
    learner, chance = ClusterLearner(), random.Random(1)
    for number in range(2 * FIRST):
        learner.learn(f"c{number % customers}", [chance.gauss(0.0, 1.0) for _ in FEATURES])
    assert len(learner.state.centres) == clusters
