"""How the monitor connects: impatiently, since a look that hangs tells nobody anything."""

from __future__ import annotations

from typing import Any

from schemas.config import KafkaSettings, kafka_python_options

BOOTSTRAP_MS = 5_000  # kafka-python's own are 30 s each
REQUEST_MS = 15_000


def options(kafka: KafkaSettings) -> dict[str, Any]:
    """Keywords of kafka-python's clients."""
    return kafka_python_options(kafka) | {"bootstrap_timeout_ms": BOOTSTRAP_MS, "request_timeout_ms": REQUEST_MS}
