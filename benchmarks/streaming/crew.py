"""Real workers for benchmarks of whole runs: started, stopped, killed, and watched through the topics and their logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from mailtide.demo.follower import Follower
from mailtide.local import broker, mail_server
from mailtide.process.children import spawn, stop
from mailtide.services.supervisor import environment
from mailtide.settings import DEFAULTS
from schemas.config import KafkaSettings, Settings, SmtpSettings
from schemas.mail import iso
from schemas.topics import EVENTS
from transport import topics
from transport.batches import ProducerBatches
from transport.clients import partition_of, producer

PATIENCE = 300.0  # seconds before a wait is given up
Event = tuple[str, dict[str, Any]]  # customer, body


class Crew:
    """Workers on one home and prefix; ``triggers``: TOML instead of the default triggers."""

    def __init__(self, settings: Settings, triggers: str = "") -> None:
        self.home = Path(settings.home).absolute()
        self.home.mkdir(parents=True, exist_ok=True)
        self.server = mail_server.start(settings)
        self.settings = msgspec.structs.replace(settings, smtp=SmtpSettings(url=f"smtp://127.0.0.1:{self.server.port}"))
        config = self.home / "mailtide.toml"
        config.write_text(triggers or DEFAULTS.read_text())
        kafka = settings.kafka
        self.environment = environment(self.settings) | {
            "MAILTIDE_CONFIG": str(config),
            "MAILTIDE_KAFKA_PREFIX": kafka.prefix,
            "MAILTIDE_KAFKA_PARTITIONS": str(kafka.partitions),
        }
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.follower = Follower(self.settings)
        self.follower.start()

    def start(self, name: str, stages: str) -> None:
        """One worker process with these stages."""
        command = [sys.executable, "-m", "mailtide", "worker", "--stages", stages]
        self.workers[name] = spawn(command, self.home / f"{name}.log", env=self.environment)

    def kill(self, name: str) -> None:
        """Signal 9."""
        process = self.workers.pop(name)
        process.kill()
        process.wait()

    def cpu(self, name: str) -> float:
        """CPU seconds that a running worker has used."""
        fields = Path(f"/proc/{self.workers[name].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, name: str) -> float:
        """The most bytes it held at once."""
        status = Path(f"/proc/{self.workers[name].pid}/status").read_text()
        return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def kept(self, kafka_home: Path) -> dict[str, int]:
        """Bytes of each topic of ours on the broker's disk, without its indexes."""
        found: dict[str, int] = {}
        for file in (kafka_home / "kafka" / "data").glob(f"{self.settings.kafka.prefix}*/*.log"):
            topic = file.parent.name.removeprefix(self.settings.kafka.prefix).rpartition("-")[0]
            found[topic] = found.get(topic, 0) + file.stat().st_size
        return found

    def close(self) -> None:
        """Everything that was started here ends."""
        for process in self.workers.values():
            process.terminate()
        for process in self.workers.values():
            stop(process, 10.0)
        self.follower.close()
        self.server.stop()

    def until(self, true: Callable[[], bool], what: str, every: float = 0.02) -> float:
        """Seconds until it is; TimeoutError, RuntimeError where a worker ends meanwhile."""
        started = time.monotonic()
        while not true():
            for name, process in self.workers.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended: {(self.home / f'{name}.log').read_text()[-600:]}")
            if time.monotonic() - started > PATIENCE:
                raise TimeoutError(f"{what} did not come within {PATIENCE:.0f} s")
            time.sleep(every)
        return time.monotonic() - started

    def opened(self, name: str, group: str = "mailtide-intake") -> set[int]:
        """Partitions that the worker's log says it holds now."""
        held: set[int] = set()
        for line in (self.home / f"{name}.log").read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                said = json.loads(line)
                if str(said.get("group", "")).endswith(group):
                    held = held | {said["partition"]} if said["event"] == "partition open" else held
                    held = held - {said["partition"]} if said["event"] == "partition given up" else held
        return held

    def applied(self) -> bool:
        """Whether intake has applied all that is published."""
        return self.follower.intake_lag(self.follower.event_ends()) == 0

    async def publish(self, events: Iterable[Event]) -> int:
        """As fast as Kafka takes them; how many."""
        count, kafka = 0, self.settings.kafka
        client = await producer(kafka, linger_ms=5)
        box = ProducerBatches(client)
        for count, (customer, body) in enumerate(events, 1):
            value = msgspec.json.encode(body)
            box.add(kafka.topic(EVENTS), partition_of(customer.encode(), kafka.partitions), customer.encode(), value)
            if count % 5000 == 0:
                await asyncio.gather(*await box.send())
        await asyncio.gather(*await box.send())
        await client.stop()
        return count


@contextlib.contextmanager
def crew(home: Path, partitions: int, triggers: str = "", **settings: Any) -> Iterator[Crew]:
    """A fresh prefix on a broker of its own."""
    with broker.running(Settings(home=str((home / "kafka").absolute()))) as ready:
        prefix = f"b{uuid.uuid4().hex[:8]}."
        kafka = KafkaSettings(bootstrap=ready.kafka.bootstrap, prefix=prefix, partitions=partitions)
        made = Settings(home=str(home / prefix), kafka=kafka, **settings)
        topics.create(made)
        workers = Crew(made, triggers)
        try:
            yield workers
        finally:
            workers.close()


def viewed(customer: str, number: int, at: float | None = None) -> Event:
    """A product looked at, now or at ``at`` seconds."""
    body = {"messageId": f"v{number}", "type": "track", "event": "Product Viewed", "userId": customer, "timestamp": iso(at or time.time())}
    return customer, body | {"properties": {"product_id": f"p{number % 500}", "category": "Bread", "price": 4.0}}


def identified(customer: str) -> Event:
    """Who may be written to."""
    traits = {"email": f"{customer}@customers.example.com", "firstName": "Ann", "consent": {"marketing": True}}
    return customer, {"messageId": f"i{customer}", "type": "identify", "userId": customer, "timestamp": iso(time.time()), "traits": traits}
