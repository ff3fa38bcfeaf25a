"""A look of the lag monitor at 5,000 partitions of a real Kafka: seconds and memory, while records are produced and committed.

The monitor runs as its own process, as ``mailtide monitor`` does, with five groups that
read a thousand partitions each; it is asked through ``/metrics``, which is scraped after every look.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import msgspec
import psutil
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.structs import OffsetAndMetadata

from benchmarks import Row, benchmark
from mailtide.local import broker, endpoints
from schemas.config import KafkaSettings, Settings

TOPICS, EACH = 5, int(os.environ.get("BENCH_MONITOR_PARTITIONS", "5000")) // 5
LOOKS = 10  # the first two connect, fetch metadata and fill caches; they count for memory, not for time
RECORDS = 3  # in each partition at the start
BYTES = 128
# Thousands of small logs: indexes of 10 MB each would be mapped for every one of them.
SMALL = {"segment.index.bytes": "4096", "retention.ms": "-1"}


def make(kafka: KafkaSettings) -> list[str]:
    names = [f"{kafka.prefix}t{number}" for number in range(TOPICS)]
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, request_timeout_ms=300_000)
    for name in names:
        admin.create_topics([NewTopic(name, EACH, 1, topic_configs=SMALL)], timeout_ms=300_000)
    admin.close()
    return names


def produce(client: KafkaProducer, names: list[str], count: int) -> None:
    for _ in range(count):
        for name in names:
            for number in range(EACH):
                client.send(name, b"." * BYTES, partition=number)
    client.flush()


def commit(kafka: KafkaSettings, name: str, offset: int, every: int = 1) -> None:
    """The group of this topic commits; every so many-th partition stays behind."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=name.replace(".t", ".g"), enable_auto_commit=False)
    places = [TopicPartition(name, number) for number in range(EACH) if every == 1 or number % every]
    consumer.assign(places)
    consumer.commit(dict.fromkeys(places, OffsetAndMetadata(offset, "", -1)))
    consumer.close()


def asked(url: str) -> tuple[dict[str, float], int]:
    """Figures without labels, and how many samples there were."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if "{" not in line}, len(lines)


@benchmark("monitor_5000")
def monitor(home: Path, runs: int) -> list[Row]:
    work = (home / f"monitor-{uuid.uuid4().hex[:6]}").absolute()
    work.mkdir(parents=True)
    with broker.running(Settings(home=str(work), kafka=KafkaSettings(heap_mb=1024))) as ready:
        kafka = msgspec.structs.replace(ready.kafka, prefix="b.")
        names = make(kafka)
        client = KafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=50, batch_size=1024)
        produce(client, names, RECORDS)
        for name in names:
            commit(kafka, name, 1)
        environment = os.environ | {
            "MAILTIDE_HOME": str(work),
            "MAILTIDE_KAFKA": kafka.bootstrap,
            "MAILTIDE_KAFKA_PREFIX": "",
            "MAILTIDE_MONITOR_PORT": "0",
            "MAILTIDE_MONITOR_INTERVAL": "5",
            "MAILTIDE_MONITOR_GROUPS": r"b\.g.*",
        }
        with (work / "monitor.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "mailtide", "monitor"], env=environment, stdout=log, stderr=log)
        try:
            seconds, scrapes, peak, samples = watched(process, work, client, kafka, names)
        finally:
            process.terminate()
            process.wait(20)
            client.close()
    pairs = TOPICS * EACH
    spread, scrape = f"{min(seconds):.2f}-{max(seconds):.2f} s", statistics.median(scrapes)
    note = f"{pairs} partitions, {TOPICS} groups; {spread}; a scrape of {samples} samples {scrape:.2f} s; load {os.getloadavg()[0]:.1f}"
    return [
        Row("monitor_5000", statistics.median(seconds), None, "s/look", len(seconds), better="lower", note=note),
        Row("monitor_5000_memory", peak / 1e6, None, "MB RSS", len(seconds), better="lower", note="peak, with a scrape after every look"),
    ]


def watched(
    process: subprocess.Popen[bytes], work: Path, client: KafkaProducer, kafka: KafkaSettings, names: list[str]
) -> tuple[list[float], list[float], int, int]:
    """Seconds of each look, seconds of each scrape, peak bytes, samples; between looks records come and offsets move."""
    deadline = time.monotonic() + 300
    while not (url := endpoints.read(work).get("monitor")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the monitor did not start: " + (work / "monitor.log").read_text()[-800:])
        time.sleep(0.1)
    looks: list[float] = []
    scrapes: list[float] = []
    peak = samples = 0
    known = psutil.Process(process.pid)
    while len(looks) < LOOKS and time.monotonic() < deadline:
        began = time.monotonic()
        figures, samples = asked(url)
        scrapes.append(time.monotonic() - began)
        peak = max(peak, known.memory_info().rss)
        took = figures.get("kafka_lag_scrape_seconds", 0.0)
        if figures.get("kafka_lag_scrape_partitions") == TOPICS * EACH and (not looks or looks[-1] != took):
            looks.append(took)
            produce(client, names, 1)
            commit(kafka, names[len(looks) % TOPICS], 1 + len(looks) % RECORDS, every=3)
        time.sleep(0.2)
    if len(looks) < LOOKS:
        raise RuntimeError(f"{len(looks)} looks in 300 s: " + (work / "monitor.log").read_text()[-800:])
    return looks[2:], scrapes, peak, samples
