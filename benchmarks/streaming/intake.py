"""Events a second on one core, counted when the work is committed: our intake beside Quix Streams and Kafka Streams.

Every side reads the same topic (348-byte orders of 50,000 customers, 4 partitions),
keeps 24 floats a customer in RocksDB with a changelog, and publishes an output for 1 event in 10.
A clock runs from a side's first record to the end of its last commit, on its way out.
``BENCH_INTAKE_EVENTS`` names other numbers of events, with commas between.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka.admin import KafkaAdminClient, NewTopic

from benchmarks import Row, benchmark
from benchmarks.streaming.kafka_streams import command as streams_command
from mailtide.local import broker
from schemas.config import KafkaSettings, Settings
from schemas.mail import iso
from schemas.topics import EVENTS
from transport import topics
from transport.batches import ProducerBatches
from transport.clients import partition_of, producer

COUNTS = [int(count) for count in os.environ.get("BENCH_INTAKE_EVENTS", "400000,1600000").split(",")]
CUSTOMERS, PARTITIONS, BYTES = 50_000, 4, 348
MANY = int(os.environ.get("BENCH_INTAKE_MANY", "1000000"))
T0 = 1_763_892_900.0
PEERS = Path(__file__).parents[1] / "peers"
QUIX = "quixstreams==3.28.0"


def order(number: int, customers: int = CUSTOMERS) -> tuple[bytes, bytes]:
    """Key and value of one order; the value has ``BYTES`` bytes."""
    customer = f"c-{number * 7919 % customers}"
    product = {"product_id": f"p-{number % 5000}", "name": "Italian bread", "category": "Bakery", "price": 2.5, "quantity": 1}
    properties = {"order_id": f"o-{number}", "total": 31.5, "currency": "USD", "coupon": "SAVE5", "discount": 5, "products": [product]}
    body = {"messageId": str(number), "type": "track", "event": "Order Completed", "userId": customer, "timestamp": iso(T0 + number / 100)}
    value = json.dumps(body | {"properties": properties | {"note": ""}}, separators=(",", ":")).encode()
    return customer.encode(), value.replace(b'"note":""', b'"note":"' + b"." * (BYTES - len(value)) + b'"')


async def publish(settings: Settings, count: int, customers: int = CUSTOMERS) -> None:
    client = await producer(settings.kafka)
    box, name = ProducerBatches(client), settings.kafka.topic(EVENTS)
    for number in range(count):
        key, value = order(number, customers)
        box.add(name, partition_of(key, PARTITIONS), key, value)
        if number % 5000 == 4999 or number == count - 1:
            await asyncio.gather(*await box.send())
    await client.stop()


def measured(command: list[str]) -> dict[str, float]:
    """What one run on one core says of itself."""
    core = max(os.sched_getaffinity(0))
    done = subprocess.run(["taskset", "-c", str(core), *command], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-800:]}")
    said: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


def rate(said: dict[str, float]) -> float:
    """Events a second."""
    return said["events"] / said["seconds"]


def quix_python(home: Path) -> str:
    """A Python with Quix Streams in a venv of its own, so that our pins stay."""
    python = home / "bench-venv" / "bin" / "python"
    if not python.exists():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(home / "bench-venv")], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), QUIX], check=True)
    return str(python.absolute())


@contextmanager
def topics_of(work: Path, bootstrap: str, count: int, customers: int = CUSTOMERS) -> Iterator[Settings]:
    """``count`` events under a prefix of their own."""
    prefix = f"b{uuid.uuid4().hex[:8]}."
    settings = Settings(home=str(work / prefix), kafka=KafkaSettings(bootstrap=bootstrap, prefix=prefix, partitions=PARTITIONS))
    topics.create(settings)
    asyncio.run(publish(settings, count, customers))
    yield settings
    shutil.rmtree(work / prefix, ignore_errors=True)


def ours_of(settings: Settings, count: int) -> dict[str, float]:
    kafka = settings.kafka
    arguments = [kafka.bootstrap, kafka.prefix, str(PARTITIONS), str(count), settings.home]
    return measured([sys.executable, "-m", "benchmarks.peers.ours_intake", *arguments])


def peer_of(command: list[str], settings: Settings, count: int) -> dict[str, float]:
    """Each peer takes the same arguments; a topic for its output, a folder for its state."""
    kafka, name = settings.kafka, uuid.uuid4().hex[:8]
    output = f"{kafka.prefix}{name}-output"
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.create_topics([NewTopic(output, PARTITIONS, 1)])
    admin.close()
    return measured([*command, kafka.bootstrap, kafka.topic(EVENTS), output, str(count), str(Path(settings.home) / name)])


def beside(name: str, against: str, command: list[str], home: Path, runs: int) -> list[Row]:
    """Peer and ours by turns over the same topic, for each number of events; the first carries the plain name."""
    work, made = (home / name).absolute(), []
    shutil.rmtree(work, ignore_errors=True)
    with broker.running(Settings(home=str(work / "kafka"))) as ready:
        for count in COUNTS:
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(runs):
                with topics_of(work, ready.kafka.bootstrap, count) as settings:
                    theirs.append(rate(peer_of(command, settings, count)))
                    ours.append(rate(ours_of(settings, count)))
            spread = f"ours {min(ours):,.0f}-{max(ours):,.0f}, peer {min(theirs):,.0f}-{max(theirs):,.0f}"
            note = f"{count:,} events; {spread}; load {os.getloadavg()[0]:.1f}"
            full = name if count == COUNTS[0] else f"{name}_{count / 1e6:.1f}m"
            made.append(Row(full, statistics.median(ours), statistics.median(theirs), "events/s", runs, against, note=note))
    return made


@benchmark("intake_vs_quix")
def intake_vs_quix(home: Path, runs: int) -> list[Row]:
    """With its defaults: a checkpoint every 5 s, and one when it stops."""
    return beside("intake_vs_quix", QUIX, [quix_python(home), str(PEERS / "quix_intake.py")], home, runs)


@benchmark("intake_vs_kafka_streams")
def intake_vs_kafka_streams(home: Path, runs: int) -> list[Row]:
    """With its defaults: a commit every 30 s, and one when it closes; the state's cache on."""
    return beside("intake_vs_kafka_streams", "Kafka Streams 4.3.1", streams_command(home.absolute()), home, runs)


@benchmark("intake_memory_1m")
def intake_memory(home: Path, _runs: int) -> list[Row]:
    """One event for each of a million customers: the worker's peak memory, and what a customer takes on the disk."""
    work = (home / "intake_memory").absolute()
    shutil.rmtree(work, ignore_errors=True)
    with broker.running(Settings(home=str(work / "kafka"))) as ready, topics_of(work, ready.kafka.bootstrap, MANY, MANY) as settings:
        said = ours_of(settings, MANY)
        disk = sum(file.stat().st_size for file in Path(settings.home).rglob("*") if file.is_file())
    note = f"peak RSS at {MANY:,} customers of 24 floats; {rate(said):,.0f} events/s; load {os.getloadavg()[0]:.1f}"
    return [
        Row("intake_memory_1m", said["rss"] / 2**20, None, "MiB", 1, better="lower", note=note),
        Row("intake_state_1m", disk / MANY, None, "B a customer", 1, better="lower", note="RocksDB with its log, 200 B of them the state"),
    ]
