"""Real workers, a mail server and a follower on one home: started, harmed, started again, and what the topics say in the end."""

from __future__ import annotations

import asyncio
import collections
import functools
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from kafka.errors import KafkaError

from mailtide.audit import proofs
from mailtide.demo.follower import Follower
from mailtide.local import broker, endpoints
from mailtide.local.mail_server import LocalMailServer
from mailtide.process.children import spawn, stop
from mailtide.services.supervisor import SERVICES, environment
from mailtide.settings import load
from models.triggers.passes import describe
from schemas.config import Settings, SmtpSettings
from schemas.topics import CUSTOMERS, DEAD_LETTERS, DELIVERIES, EVENTS
from tests.chaos.events import Told, undisturbed
from tests.tiny_model import tiny
from transport.blocking import records
from transport.clients import partition_of, producer

WORKERS = ("intake", "mail")
COMMANDS = SERVICES | {"publisher": ["publish"]}
PATIENCE = float(os.environ.get("CHAOS_PATIENCE", "240"))  # seconds; a busy machine starts a worker in half a minute
RESTART = 0.5  # seconds before a dead worker is started again, as the supervisor does at first


class Outcome(msgspec.Struct):
    """``twice``: mails beyond the first of an intent, and outcomes beyond the first. ``differ``: counts or features that changed."""

    events: int
    intents: int
    outcomes: dict[str, int]
    lost: int
    twice: int
    differ: list[str]
    report: proofs.Report
    deaths: list[str] = []  # workers that ended by themselves

    @property
    def clean(self) -> bool:
        """Nothing lost, doubled, changed or broken."""
        return not (self.lost or self.twice or self.differ or self.report.breaches or self.report.open)


class Flock:
    """What ends by itself is started again, as `mailtide up` does; ``deaths`` says what did."""

    def __init__(self, settings: Settings, moods: Any = None) -> None:
        self.folder = Path(settings.home) / "outbox"
        self.server = LocalMailServer(self.folder, 0, moods(self.folder) if moods else None).start()
        self.settings = msgspec.structs.replace(
            settings, clock="event", smtp=SmtpSettings(url=f"smtp://127.0.0.1:{self.server.port}"), trigger=load({}).trigger
        )
        kafka = settings.kafka
        self.environment = environment(self.settings) | {
            "MAILTIDE_KAFKA_PREFIX": kafka.prefix,
            "MAILTIDE_KAFKA_PARTITIONS": str(kafka.partitions),
            "MAILTIDE_KAFKA_SESSION_TIMEOUT": "6",  # the broker's least: how long the dead keep their partitions
            "MAILTIDE_WRITER_BASE_MODEL": str(tiny()),
            "MAILTIDE_WRITER_THREADS": "1",
            "MAILTIDE_MONITOR_PORT": "0",
            "MAILTIDE_SMTP_TIMEOUT": "2",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.own_broker: OwnBroker | None = None
        self.deaths: list[str] = []
        self._starts: dict[str, Callable[[], None]] = {}
        self._trapped: set[str] = set()
        self._begun: dict[str, int] = {}  # where the running process's words begin in its log
        self._again: dict[str, float] = {}
        self.told: Told = []
        self.follower = Follower(self.settings)
        self.follower.start()

    # -- processes ----------------------------------------------------------------------------------

    def start(self, worker: str, *, at: str = "", harm: str = "kill", before: Iterable[str] = (), **more: str) -> None:
        """``worker``: a service, with any number behind it. ``at``: where it comes to harm. ``before``: words before the command."""
        trap = {"CHAOS_AT": at, "CHAOS_HARM": harm} if at else {}
        command = [*before, sys.executable, "-m", "tests.chaos.killed_worker", *COMMANDS[worker.rstrip("0123456789")]]
        self._begun[worker] = self.log(worker).stat().st_size if self.log(worker).exists() else 0
        self.processes[worker] = spawn(command, self.log(worker), env=self.environment | trap | more)
        self._starts[worker] = functools.partial(self.start, worker, at=at, harm=harm, before=before, **more)
        self._trapped.discard(worker)
        if at and harm == "kill":
            self._trapped.add(worker)

    def log(self, worker: str) -> Path:
        """What the worker says."""
        return Path(self.settings.home) / f"{worker}.log"

    def opened(self, worker: str, group: str = "mailtide-intake") -> set[int]:
        """Partitions that the process which runs now says it holds."""
        held: set[int] = set()
        whole = self.log(worker).read_bytes()[self._begun[worker] :].rpartition(b"\n")[0]  # the last line may be in the making
        for line in whole.splitlines():
            said = msgspec.json.decode(line) if line.startswith(b"{") else {}
            if str(said.get("group", "")).endswith(group) and said["event"] in ("partition open", "partition given up"):
                held = held | {said["partition"]} if said["event"] == "partition open" else held - {said["partition"]}
        return held

    def metrics(self, service: str) -> str:
        """What Prometheus would read there; nothing while it doesn't answer."""
        try:
            with urllib.request.urlopen(f"{endpoints.read(Path(self.settings.home))[service]}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except (KeyError, OSError):
            return ""

    def signal(self, worker: str, signum: signal.Signals) -> None:
        assert self.processes[worker].poll() is None, f"{worker} ended by itself"
        os.kill(self.processes[worker].pid, signum)

    def kill(self, worker: str) -> None:
        self.signal(worker, signal.SIGKILL)
        self.processes.pop(worker).wait()

    def end(self, worker: str) -> None:
        """Signal 9, where it hasn't ended by itself."""
        process = self.processes.pop(worker)
        process.kill()
        process.wait()

    def leave(self, worker: str) -> None:
        """A worker drains and goes, within the promised time."""
        code = stop(self.processes.pop(worker), 60.0)
        assert code in (0, -signal.SIGTERM), self.log(worker).read_text()[-2000:]  # the second: it had hardly begun to start

    def caught(self, worker: str) -> bool:
        """Whether the trap that was laid for it has closed."""
        return self.processes[worker].poll() == -signal.SIGKILL

    def dies(self, worker: str) -> None:
        """Wait for that."""
        self.until(lambda: self.caught(worker))
        del self.processes[worker]

    def tend(self) -> None:
        """Start again what ended and was not meant to."""
        for worker, process in list(self.processes.items()):
            if process.poll() is None or (worker in self._trapped and self.caught(worker)):
                continue
            if worker not in self._again:
                self.deaths.append(worker)
                self._again[worker] = time.monotonic() + RESTART
            elif time.monotonic() >= self._again[worker]:
                del self._again[worker]
                self._starts[worker]()

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                os.kill(process.pid, signal.SIGCONT)  # a stopped one dies, too
            process.wait()
        self.follower.close()
        self.server.stop()

    # -- events and progress ------------------------------------------------------------------------

    def publish(self, told: Told) -> None:
        """Returns when all are acknowledged."""
        self.told += told
        asyncio.run(self._publish([(EVENTS, customer, value) for customer, value in told]))

    def put(self, told: Iterable[tuple[str, str, bytes | None]]) -> None:
        """(topic, key, value) of records that count for nothing."""
        asyncio.run(self._publish(told))

    async def _publish(self, told: Iterable[tuple[str, str, bytes | None]]) -> None:
        kafka = self.settings.kafka
        out = await producer(kafka, acks="all", linger_ms=5)
        try:
            sent = []
            for topic, customer, value in told:
                count = len(await out.partitions_for(kafka.topic(topic)))
                sent.append(await out.send(kafka.topic(topic), value, customer.encode(), partition_of(customer.encode(), count)))
            await asyncio.gather(*sent)
        finally:
            await out.stop()

    @property
    def applied(self) -> int:
        """Offsets that intake has applied."""
        return sum(self.follower.seen.applied.values())

    @property
    def ended(self) -> int:
        """Intents with an outcome."""
        return len(self.follower.seen.outcomes)

    def dead_letters(self) -> int:
        """How many there are, tombstones too."""
        return sum(1 for _ in records(self.settings.kafka, DEAD_LETTERS))

    def progress(self, worker: str) -> int:
        return self.applied if worker.startswith("intake") else self.ended

    def settled(self) -> bool:
        """Whether intake applied all that is published and every intent has its outcome."""
        try:
            return self.follower.seen.open_intents == 0 and self.follower.intake_lag(self.follower.event_ends()) == 0
        except KafkaError:
            return False  # no broker just now

    def until(self, true: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait for a condition, tending the workers."""
        deadline = time.monotonic() + patience
        while not true():
            self.tend()
            seen = self.follower.seen
            assert time.monotonic() < deadline, f"nothing came of it: applied {seen.applied}, open {seen.open_intents}"
            time.sleep(0.02)

    # -- the end ------------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        """Wait until all is done; compare and count."""
        self.until(self.settled)
        report = proofs.audit(self.settings)
        deadline = time.monotonic() + PATIENCE
        while (report.open or any(report.lag.values())) and time.monotonic() < deadline:  # the last commits follow the last outcome
            self.tend()
            time.sleep(0.2)
            report = proofs.audit(self.settings)
        mails = collections.Counter(file.name.partition("@")[0] for file in self.folder.glob("*.eml"))
        ends = collections.Counter(msgspec.json.decode(record.value)["intent_id"] for record in records(self.settings.kafka, DELIVERIES))
        seen = self.follower.seen
        kept = sum(delivery.status == "sent" and delivery.intent_id not in mails for delivery in seen.outcomes.values())
        return Outcome(
            events=len(self.told),
            intents=len(seen.triggers),
            outcomes=dict(collections.Counter(delivery.status for delivery in seen.outcomes.values())),
            lost=seen.open_intents + kept,
            twice=sum(count - 1 for count in mails.values()) + sum(count - 1 for count in ends.values()),
            differ=self._differ(),
            report=report,
            deaths=self.deaths,
        )

    def _differ(self) -> list[str]:
        wall, found = time.time(), {record.key.decode(errors="replace"): record.value for record in records(self.settings.kafka, CUSTOMERS)}
        differ = []
        for customer, expected in undisturbed(self.settings, self.told, wall).items():
            state = found.get(customer)
            known: dict[str, Any] = describe(state, wall) if state else {}
            differ += [
                f"{customer} {name}: {known.get(name)} != {expected[name]}"
                for name in ("counts", "features")
                if known.get(name) != expected[name]
            ]
        return differ


class OwnBroker:
    """A broker that a fault may kill: always at the same port and data."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=str(home))
        self.settings = msgspec.structs.replace(
            self.settings, kafka=msgspec.structs.replace(self.settings.kafka, port=broker.free_port(), heap_mb=256)
        )
        self.process, self.bootstrap = broker.start(self.settings)

    def kill(self) -> None:
        """Signal 9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As an operator stops it."""
        stop(self.process, broker.STOP_SECONDS)

    def start(self) -> None:
        """On what lies there."""
        self.process, _ = broker.start(self.settings)
