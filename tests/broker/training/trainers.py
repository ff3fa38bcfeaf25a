"""What the trainer's tests share: examples on the topic, and (run as a program) trainers that die by signal 9 at a chosen place."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import msgspec
from kafka import KafkaProducer

from mailtide import settings as reading
from models.phrasebook.book import Book
from models.phrasebook.sample import drafts
from schemas.config import Settings
from schemas.mail import Choice, Example, encode, iso
from schemas.topics import EXAMPLES
from tests.tiny_model import tiny

SHORT = {"steps": 10, "batch": 4, "learning_rate": 2e-2, "rank": 4, "min_examples": 20, "kl": 0.0, "canary": 1.0, "interval": 3600.0}


def tuned(settings: Settings, **changes: object) -> Settings:
    """The tiny base, and fits of a second."""
    return msgspec.structs.replace(
        settings,
        writer=msgspec.structs.replace(settings.writer, base_model=str(tiny()), threads=1),
        training=msgspec.structs.replace(settings.training, **SHORT | changes),
    )


def environment(settings: Settings) -> dict[str, str]:
    """The same settings for another process."""
    found = {
        "MAILTIDE_HOME": settings.home,
        "MAILTIDE_KAFKA": settings.kafka.bootstrap,
        "MAILTIDE_KAFKA_PREFIX": settings.kafka.prefix,
        "MAILTIDE_KAFKA_SESSION_TIMEOUT": str(settings.kafka.session_timeout),
        "MAILTIDE_WRITER_BASE_MODEL": settings.writer.base_model,
        "MAILTIDE_WRITER_THREADS": "1",
    }
    for name in (*SHORT, "artifacts"):
        found[f"MAILTIDE_TRAINING_{name.upper()}"] = str(getattr(settings.training, name))
    return os.environ | found


def teach(settings: Settings, cluster: str, count: int, start: int = 0, choices: tuple[Choice, ...] = ()) -> None:
    """Put mails of the phrase book on the topic, as if they had been sent. ``choices``: one for each by turns."""
    book = Book.load()
    texts = drafts(book, "welcome", "warm", count, seed=start)
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    for n, text in enumerate(texts, start):
        prompt = "Trigger: welcome, warm\nCustomer: not known yet\nGoods: general\nSituation: none\n\n"
        said = choices[n % len(choices) :][:1] if choices else ()
        example = Example(
            f"{cluster}-{n}", cluster, "welcome", prompt, text, said, "base", "generated", "warm", iso(1e9 + n), customer=f"{cluster} {n}"
        )
        producer.send(settings.kafka.topic(EXAMPLES), encode(example), cluster.encode())
    producer.flush()
    producer.close()


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(_fs: Any, path: str, data: bytes) -> None:
    """As far as a killed process may have come."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.{os.getpid()}.new", "wb") as file:
        file.write(data[: len(data) // 2])
    die()


def train_and_die(place: str) -> None:
    """One round that does not end."""
    from training.refit.refit import Refit
    from training.rollout import artifacts, releases
    from training.service import Trainer

    if place == "writing the artifact":
        artifacts._write = half_written
    elif place == "before the record":
        releases.publish = die
    elif place == "after the record":
        Refit.done = die  # type: ignore[method-assign]
    trainer = Trainer(
        reading.load(), threading.Event(), lambda _name, step, _of, _loss: die() if place == "fitting" and step == 7 else None
    )
    trainer.once("c1")


if __name__ == "__main__":
    import training.service  # noqa: F401 imported once for all that die

    for where in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            try:
                train_and_die(where)
            finally:
                os._exit(3)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the trainer outlived {where!r}: {status}")
