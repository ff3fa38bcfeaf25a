"""`mailtide up` as a user starts it, on a Kafka of its own: what dies comes back, SIGTERM drains, and signal 9 leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaError

from mailtide.local import endpoints
from tests.tiny_model import tiny

pytestmark = [pytest.mark.broker, pytest.mark.timeout(480)]
MAILTIDE = [sys.executable, "-m", "mailtide"]
DRAIN_SECONDS = 10.0


class Up:
    """One that runs, and what it said."""

    def __init__(self, home: Path) -> None:
        self.home, self.output = home, home.parent / "up.log"
        told = {"HOME": str(home), "MONITOR_PORT": "0", "KAFKA_HEAP_MB": "256", "WRITER_BASE_MODEL": str(tiny()), "WRITER_THREADS": "1"}
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MAILTIDE_") or name == "MAILTIDE_CACHE"}
        self.environment = plain | {f"MAILTIDE_{name}": value for name, value in told.items()}
        with self.output.open("wb") as out:
            self.process = subprocess.Popen([*MAILTIDE, "up"], stdout=out, stderr=out, env=self.environment)

    def said(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.output.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line["event"] == event]

    def until(self, true: Callable[[], Any], seconds: float = 240.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := true()):
            assert self.process.poll() is None, self.output.read_text()[-2000:]
            assert time.monotonic() < deadline, "the condition did not come true in time: " + self.output.read_text()[-2000:]
            time.sleep(0.1)
        return found

    def broker(self) -> psutil.Process:
        """The java that answers, or will."""
        return self.until(lambda: [each for each in psutil.Process(self.process.pid).children() if "kafka.Kafka" in _command(each)])[0]

    def publish(self, message: str) -> None:
        event = {"messageId": message, "type": "track", "event": "Product Viewed", "userId": "c-1", "timestamp": "2026-01-05T10:15:00Z"}

        def sent() -> bool:
            try:
                client = KafkaProducer(bootstrap_servers=str(endpoints.read(self.home)["kafka"]))
            except KafkaError:
                return False  # not back yet
            with client:
                client.send("customer.events", json.dumps(event).encode(), key=b"c-1").get(120)
            return True

        self.until(sent)

    def viewed(self) -> int:
        """How many views of the customer are applied."""
        shown = subprocess.run([*MAILTIDE, "customer", "show", "c-1", "--json"], env=self.environment, capture_output=True, check=False)
        return int(json.loads(shown.stdout)["counts"]["Product Viewed"]) if shown.returncode == 0 else 0

    def drained(self) -> float:
        """Seconds from being told to the end, by its own log: a crowded machine takes longer to notice."""
        began, ended = (datetime.fromisoformat(self.said(event)[0]["timestamp"]) for event in ("draining", "down"))
        return (ended - began).total_seconds()

    def family(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _ready(home: Path, name: str) -> bool:
    """Whether this service says that its stages have joined."""
    try:
        with urllib.request.urlopen(f"{endpoints.read(home)[name]}/health/ready", timeout=5):
            return True
    except (KeyError, OSError):
        return False


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path / "home")
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.wait()


def test_a_broker_that_dies_is_started_again_and_what_comes_then_is_applied(up: Up) -> None:
    up.until(lambda: up.said("up"))
    up.publish("m1")
    up.until(lambda: up.viewed() == 1)
    address, first = endpoints.read(up.home)["kafka"], up.broker()
    first.kill()
    up.until(lambda: [line for line in up.said("service_restarted") if line["service"] == "kafka"])
    (died,) = [line for line in up.said("service_died") if line["service"] == "kafka"]
    assert died["code"] == -signal.SIGKILL
    assert died["log"] == str(up.home / "kafka" / "broker.log")
    assert endpoints.read(up.home)["kafka"] == address
    up.publish("m2")
    up.until(lambda: up.viewed() == 2)  # its data is the old one's

    # Told to end while the broker is away.
    family = up.family()
    up.broker().kill()
    up.until(lambda: len([line for line in up.said("service_died") if line["service"] == "kafka"]) == 2)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert up.drained() < DRAIN_SECONDS
    assert not [each for each in family if _alive(each)]


def test_no_orphan_of_one_that_is_killed_and_a_drain_ends_in_time(up: Up) -> None:
    up.until(lambda: up.said("up"))
    up.broker().kill()  # the one that comes then has another thread for a parent
    up.until(lambda: [line for line in up.said("service_restarted") if line["service"] == "kafka"])
    up.until(lambda: len(up.family()) >= 5)  # a service that was just starting ended with it, and is started again
    family = up.family()
    up.process.kill()
    up.process.wait()
    deadline = time.monotonic() + 30
    while left := [each for each in family if _alive(each)]:
        assert time.monotonic() < deadline, f"these outlived it: {left}"
        time.sleep(0.05)
    again = Up(up.home)
    try:
        again.until(lambda: len(list((up.home / "logs").glob("*.log"))) == 4 and again.said("up"))
        again.publish("m1")
        again.until(lambda: again.viewed() == 1)
        family = again.family()
        again.process.terminate()
        assert again.process.wait(60) == 0
        assert again.drained() < DRAIN_SECONDS
        assert not [each for each in family if _alive(each)]
    finally:
        again.process.kill()
        again.process.wait()


def test_a_second_is_refused_and_what_runs_beside_the_first_finds_it_and_leaves_its_endpoints_alone(up: Up) -> None:
    up.until(lambda: up.said("up") and {"smtp", "monitor"} <= endpoints.read(up.home).keys())
    served = endpoints.read(up.home)
    told = f"process {up.process.pid} runs the services of {up.home} already: stop it, or give this one a MAILTIDE_HOME of its own"
    for words in (["up"], ["demo"]):
        second = subprocess.run([*MAILTIDE, *words], env=up.environment, capture_output=True, text=True, check=False, timeout=120)
        assert (second.returncode, second.stderr) == (1, f"mailtide: {told}\n")
    with subprocess.Popen([*MAILTIDE, "monitor"], env=up.environment) as beside:
        up.until(lambda: endpoints.read(up.home)["monitor"] != served["monitor"])
        beside.terminate()
    assert endpoints.read(up.home)["monitor"] == served["monitor"]
    with subprocess.Popen([*MAILTIDE, "worker", "--stages", "sender"], env=up.environment) as beside:
        name = "worker-w2"  # the first's own are w0 and w1
        up.until(lambda: beside.poll() is not None or _ready(up.home, name))
        beside.terminate()
    assert beside.returncode == 0
    left = endpoints.read(up.home)
    assert {name: left[name] for name in ("kafka", "smtp", "monitor")} == {name: served[name] for name in ("kafka", "smtp", "monitor")}


def test_told_to_end_before_kafka_answers_it_ends_at_once(up: Up) -> None:
    java = up.broker()
    up.process.terminate()
    assert up.process.wait(60) == 0
    assert not _alive(java)
    assert not up.said("up")
