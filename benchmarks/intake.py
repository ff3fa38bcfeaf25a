"""Events a second on one core, counted when the work is committed: our intake beside Quix Streams.

Every side reads the same topic (348-byte orders of 50,000 customers, 4 partitions),
keeps 24 floats a customer in RocksDB with a changelog, and publishes an output for 1 event in 10.
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
from pathlib import Path

from kafka.admin import KafkaAdminClient, NewTopic

from benchmarks import Row, benchmark
from mailtide import broker, topics
from schemas.config import KafkaSettings, Settings
from schemas.mail import iso
from schemas.topics import EVENTS
from streams.kafka import partition_of, producer
from streams.outbox import Outbox

EVENTS_COUNT = int(os.environ.get("BENCH_INTAKE_EVENTS", "400000"))
CUSTOMERS, PARTITIONS, BYTES = 50_000, 4, 348
T0 = 1_763_892_900.0
PEERS = Path(__file__).parent / "peers"
QUIX = "quixstreams==3.28.0"


def order(number: int) -> tuple[bytes, bytes]:
    """Key and value of one order; the value has ``BYTES`` bytes."""
    customer = f"c-{number * 7919 % CUSTOMERS}"
    product = {"product_id": f"p-{number % 5000}", "name": "Italian bread", "category": "Bakery", "price": 2.5, "quantity": 1}
    properties = {"order_id": f"o-{number}", "total": 31.5, "currency": "USD", "coupon": "SAVE5", "discount": 5, "products": [product]}
    body = {"messageId": str(number), "type": "track", "event": "Order Completed", "userId": customer, "timestamp": iso(T0 + number / 100)}
    value = json.dumps(body | {"properties": properties | {"note": ""}}, separators=(",", ":")).encode()
    return customer.encode(), value.replace(b'"note":""', b'"note":"' + b"." * (BYTES - len(value)) + b'"')


async def publish(settings: Settings) -> None:
    client = await producer(settings.kafka)
    box, name = Outbox(client), settings.kafka.topic(EVENTS)
    for number in range(EVENTS_COUNT):
        key, value = order(number)
        box.add(name, partition_of(key, PARTITIONS), key, value)
        if number % 5000 == 4999 or number == EVENTS_COUNT - 1:
            await asyncio.gather(*await box.send())
    await client.stop()


def measured(command: list[str]) -> float:
    """Events a second of one run on one core."""
    core = max(os.sched_getaffinity(0))
    done = subprocess.run(["taskset", "-c", str(core), *command], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed: {done.stderr.strip()[-800:]}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return said["events"] / said["seconds"]


def quix_python(home: Path) -> str:
    """A Python with Quix Streams in a venv of its own, so that our pins stay."""
    python = home / "bench-venv" / "bin" / "python"
    if not python.exists():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(home / "bench-venv")], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), QUIX], check=True)
    return str(python.absolute())


@benchmark("intake")
def intake(home: Path, runs: int) -> list[Row]:
    python, work = quix_python(home), (home / "intake").absolute()
    shutil.rmtree(work, ignore_errors=True)
    ours: list[float] = []
    quix: list[float] = []
    with broker.running(Settings(home=str(work / "kafka"))) as ready:
        for _ in range(runs):
            prefix = f"b{uuid.uuid4().hex[:8]}."
            kafka = KafkaSettings(bootstrap=ready.kafka.bootstrap, prefix=prefix, partitions=PARTITIONS)
            settings = Settings(home=str(work / prefix), kafka=kafka)
            topics.create(settings)
            asyncio.run(publish(settings))
            count, events = str(EVENTS_COUNT), kafka.topic(EVENTS)
            module = [sys.executable, "-m", "benchmarks.peers.ours_intake"]
            ours.append(measured([*module, kafka.bootstrap, prefix, str(PARTITIONS), count, settings.home]))
            admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
            admin.create_topics([NewTopic(prefix + "quix-output", PARTITIONS, 1)])
            admin.close()
            folder = str(work / f"{prefix}quix")
            quix.append(measured([python, str(PEERS / "quix_intake.py"), kafka.bootstrap, events, prefix + "quix-output", count, folder]))
    note = f"median; ours {min(ours):,.0f}-{max(ours):,.0f}, peer {min(quix):,.0f}-{max(quix):,.0f}; load {os.getloadavg()[0]:.1f}"
    return [Row("intake_vs_quix", statistics.median(ours), statistics.median(quix), "events/s", runs, "Quix Streams 3.28.0", note=note)]
