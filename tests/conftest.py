"""One real Kafka for the whole session; a fresh topic prefix for each test."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from mailtide.local import broker
from schemas.config import KafkaSettings, Settings
from transport import topics


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real broker that lives as long as the session."""
    home = tmp_path_factory.mktemp("kafka")
    with broker.running(Settings(home=str(home))) as settings:
        yield settings.kafka.bootstrap


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command that is run within the test logs to its captured stderr, which is closed then: whoever logs later would fail."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {logger: logger.level for logger in _loggers()}
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    for logger in _loggers():
        logger.setLevel(levels.get(logger, logging.NOTSET))


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(), *(each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger))]


@pytest.fixture
def prefix() -> str:
    """Stands before every topic and group of one test, so that tests can't meet."""
    return f"t{uuid.uuid4().hex[:8]}."


@pytest.fixture
def settings(kafka: str, prefix: str, tmp_path: Path) -> Settings:
    """Settings of a fresh home on the session's broker, with the declared topics made (two partitions)."""
    made = Settings(home=str(tmp_path / "home"), kafka=KafkaSettings(bootstrap=kafka, prefix=prefix, partitions=2))
    topics.create(made)
    return made


@pytest.fixture
def with_changes() -> object:
    """msgspec's replace, for tests that need a setting changed."""
    return msgspec.structs.replace
