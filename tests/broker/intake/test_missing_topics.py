"""A worker on a Kafka that has no topics of Mailtide's, or doesn't have them all yet."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.config import KafkaSettings, Settings
from schemas.errors import TopicMismatch
from schemas.topics import TOPICS
from transport import topics

pytestmark = pytest.mark.broker


@pytest.fixture
def bare(kafka: str, prefix: str, tmp_path: Path) -> Settings:
    """Settings of a fresh home and a prefix without topics."""
    return Settings(home=str(tmp_path / "home"), kafka=KafkaSettings(bootstrap=kafka, prefix=prefix, partitions=2))


@pytest.mark.parametrize("stages", ["writer", "intake,clusters,writer,sender"])
def test_a_worker_without_topics_names_them_in_one_line(bare: Settings, stages: str) -> None:
    told = {"MAILTIDE_HOME": bare.home, "MAILTIDE_KAFKA": bare.kafka.bootstrap, "MAILTIDE_KAFKA_PREFIX": bare.kafka.prefix}
    words = [sys.executable, "-m", "mailtide", "worker", "--stages", stages]
    done = subprocess.run(words, env=os.environ | told, capture_output=True, text=True, check=False, timeout=120)
    names = ", ".join(sorted(bare.kafka.topic(topic.name) for topic in TOPICS))
    mend = "run `mailtide topics create`"
    assert (done.returncode, done.stderr) == (1, f"mailtide: topics are missing at {bare.kafka.bootstrap}: {names}; {mend}\n")


def test_a_worker_waits_while_another_process_makes_them(bare: Settings) -> None:
    asked = threading.Semaphore(0)
    waiting = threading.Thread(target=topics.wait, args=(bare, lambda: float(asked.release() or 0)), daemon=True)
    waiting.start()
    for _ in range(3):  # the third time with a look behind it that found the same topics missing
        assert asked.acquire(timeout=60)
    assert topics.create(bare)
    waiting.join(60)
    assert not waiting.is_alive()


def test_patience_begins_anew_with_each_topic_that_comes(bare: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*missing: str) -> None:
        left = iter(missing)
        monkeypatch.setattr(topics, "_missing", lambda *_: set(next(left)))
        topics.wait(bare, itertools.count(0.0, topics.COMING + 1.0).__next__)

    wait("abc", "ab", "a", "")
    with pytest.raises(TopicMismatch, match=": a; run"):
        wait("ab", "a", "a", "")
