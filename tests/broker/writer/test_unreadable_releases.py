"""What can't be read on the topics of published models is said once, with its place, and passed over: what serves goes on serving."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from models.writer import fingerprint
from models.writer.base import HOUSE
from schemas.config import Settings
from schemas.mail import encode
from schemas.release import Release
from schemas.topics import CLUSTERS, DELIVERIES, EXAMPLES, FEEDBACK, INTENTS, RELEASES, VECTORS
from streams.clusters.stage import _newest
from tests.broker.writer.test_writer_stage import Reader, intent, publishing, put, serving, tiny_settings
from tests.tiny_model import lora, tiny
from training.feedback.examples import follow
from training.rollout.releases import history
from training.rollout.watch import Watch

__all__ = ["tiny_settings"]
pytestmark = pytest.mark.broker
BAD = (b"no release", b'{"release_id": 7}', b'{"release_id": "\xff"}', b"[" * 100_000)


def release(file: Path, base: str) -> Release:
    return Release("r1", "c1", 1, str(file), hashlib.sha256(file.read_bytes()).hexdigest(), base, 4, "")


async def test_the_trainer_and_the_commands_pass_over_what_they_cannot_read(settings: Settings, tmp_path: Path) -> None:
    good = release(lora(tmp_path / "a.safetensors", "b"), "b")
    followed = (RELEASES, CLUSTERS, VECTORS, DELIVERIES, FEEDBACK, EXAMPLES)
    async with publishing(settings) as out:
        for topic in followed:
            for value in BAD:
                await out.send_and_wait(settings.kafka.topic(topic), value, b"c1", partition=0)
        await out.send_and_wait(settings.kafka.topic(RELEASES), encode(good), b"c1")
    with capture_logs() as said:
        assert history(settings) == {"c1": [good]}
    assert [(one["topic"], one["partition"], one["offset"]) for one in said] == [(settings.kafka.topic(RELEASES), 0, n) for n in range(4)]
    assert all(one["error"] for one in said)
    with capture_logs() as said:
        watch = Watch(settings)
        assert watch.serving == {"c1": good}
        watch.catch_up()
        watch.close()
    assert len(said) == len(BAD) * 5, "each is said once"
    with capture_logs() as said:
        assert follow(settings, tmp_path / "examples") == len(BAD) * 2
        assert follow(settings, tmp_path / "examples") == 0
    assert len(said) == len(BAD) * 2
    assert await _newest(settings) == {}


async def test_the_writer_serves_on(tiny_settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = fingerprint(tiny(), HOUSE)
    good = release(lora(tmp_path / "a.safetensors", base, scale=0.5), base)
    name = {topic: tiny_settings.kafka.topic(topic) for topic in (RELEASES, CLUSTERS, INTENTS)}
    async with publishing(tiny_settings) as out, Reader(tiny_settings) as reader:
        await out.send_and_wait(name[RELEASES], encode(good), b"c1")
        with caplog.at_level(logging.WARNING, "streams"):
            async with serving(tiny_settings) as task:
                for value in BAD:
                    await out.send_and_wait(name[RELEASES], value, b"c1")
                    await out.send_and_wait(name[CLUSTERS], value, b"s")
                    await out.send_and_wait(name[INTENTS], value, b"c")
                newer = msgspec.structs.replace(good, release_id="r2", epoch=2)
                await out.send_and_wait(name[RELEASES], encode(newer), b"c1")
                number = 0
                while not any(d.release == "r2" for d in reader.drafts):
                    await put(out, tiny_settings, intent(number))
                    number += 1
                    await reader.until(lambda d, want=number: len(d) >= want or task.done())  # type: ignore[misc]
                    assert not task.done()
    assert {d.release for d in reader.drafts} <= {"r1", "r2"}
    said = [(r.__dict__["topic"], r.__dict__["offset"]) for r in caplog.records if "left out" in r.getMessage()]
    assert sorted(said) == sorted((name[topic], n) for topic, first in ((RELEASES, 1), (CLUSTERS, 0)) for n in range(first, first + 4))
    assert not any("\n" in r.getMessage() or r.exc_info for r in caplog.records)
