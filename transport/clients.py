"""Connections to Kafka that are ours alone: keywords from the settings, the partition of a customer, a producer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from schemas.config import KafkaSettings, tls
from schemas.errors import KafkaUnavailable

BATCH_BYTES = 1 << 20  # of one produce batch; a flush of a fetch fits in a few of these
REQUEST_BYTES = 4 << 20  # several batches of BATCH_BYTES travel in one request


def connection(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection keywords of aiokafka's clients. Raises SettingsError as ``tls`` does."""
    options: dict[str, Any] = {"bootstrap_servers": kafka.bootstrap.split(","), "security_protocol": kafka.security_protocol}
    if kafka.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.username,
            "sasl_plain_password": kafka.password,
        }
    if (context := tls(kafka)) is not None:
        options["ssl_context"] = context
    return options


@lru_cache(1 << 17)  # aiokafka's murmur2 is plain Python, some 3 us; a shop's active customers come again and again
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of ``key`` as the Java client and librdkafka's ``murmur2`` choose it."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


async def producer(kafka: KafkaSettings, **options: Any) -> AIOKafkaProducer:
    """A started, idempotent producer; KafkaUnavailable where no broker answers."""
    made = AIOKafkaProducer(
        **connection(kafka),
        **{
            "enable_idempotence": True,
            "linger_ms": 0,
            "max_batch_size": BATCH_BYTES,
            "max_request_size": REQUEST_BYTES,
            **options,
        },
    )
    try:
        await made.start()
    except BaseException as error:  # who is cancelled meanwhile leaves no connection behind, either
        await made.stop()
        if isinstance(error, KafkaError | AssertionError):  # the second is aiokafka's way to say that no broker answers (client.py:532)
            raise KafkaUnavailable(f"no Kafka answers at {kafka.bootstrap}: {error}") from error
        raise
    return made


async def reader(kafka: KafkaSettings, **options: Any) -> AIOKafkaConsumer:
    """A started consumer without a group; KafkaUnavailable where no broker answers."""
    made = AIOKafkaConsumer(
        **connection(kafka),
        **{"enable_auto_commit": False, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 50, **options},
    )
    try:
        await made.start()
    except KafkaError as error:
        await made.stop()
        raise KafkaUnavailable(f"no Kafka answers at {kafka.bootstrap}: {error}") from error
    return made
