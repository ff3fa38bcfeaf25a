"""Real services, scraped by a real Prometheus: every query of the dashboard, health, logs and the drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailtide.local import broker, endpoints, mail_server
from schemas.config import Settings
from schemas.mail import Facts, Intent, Source, encode, iso
from schemas.topics import EVENTS, INTENTS
from tests.paths import ROOT
from tests.prometheus import binaries
from tests.tiny_model import tiny
from transport.clients import partition_of, producer

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]  # the first run fetches Prometheus
ROOT = ROOT
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
CUSTOMERS = 4
CONFIG = """
[sending]
quiet_start = "00:00"
quiet_end = "00:00"
holdout = 0.0

[[trigger]]
name = "welcome"
on = "identify"
where = "consent"
condition = "consent"
use_by = "2 days"
"""


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def until(found: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.1)
    return value


class Service:
    """``mailtide …`` as a process; what it logs goes to a file."""

    def __init__(self, name: str, words: list[str], settings: Settings, **environment: str) -> None:
        self.log = Path(settings.home) / f"{name}.log"
        self.home = Path(settings.home)
        self.home.mkdir(exist_ok=True)
        kafka = {"MAILTIDE_KAFKA": settings.kafka.bootstrap, "MAILTIDE_KAFKA_PREFIX": settings.kafka.prefix}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mailtide", *words],
                env=os.environ | kafka | {"MAILTIDE_HOME": settings.home} | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    def url(self, name: str) -> str:
        def known() -> Any:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return endpoints.read(self.home).get(name)

        return str(until(known))

    def drain(self) -> float:
        """SIGTERM; the seconds until it has ended, by itself and with 0."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()[-3000:]
        return time.monotonic() - began

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def prometheus(folder: Path, targets: dict[str, str]) -> Iterator[Callable[[str, str], Any]]:
    """A Prometheus that scrapes these (job to URL) every second, with our rules; asks its API."""
    jobs = [{"job_name": job, "static_configs": [{"targets": [urllib.parse.urlsplit(url).netloc]}]} for job, url in targets.items()]
    folder.mkdir()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy" / "alerts.yml")],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = broker.free_port()
    command = [binaries() / "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=out, stderr=out)

    def ask(path: str, query: str = "") -> Any:
        status, body = get(f"http://127.0.0.1:{port}/api/v1/{path}" + (f"?query={urllib.parse.quote(query)}" if query else ""))
        assert status == 200, f"{query}: {body}"
        return json.loads(body)["data"]

    try:
        until(lambda: process.poll() is not None or get(f"http://127.0.0.1:{port}/-/ready")[0] == 200)
        yield ask
    finally:
        process.kill()
        process.wait()


async def put(settings: Settings, topic: str, *values: bytes, keys: Sequence[str] = ()) -> None:
    client = await producer(settings.kafka)
    for number, record in enumerate(values):
        key = keys[number].encode() if number < len(keys) else None
        where = partition_of(key, settings.kafka.partitions) if key else 0
        await client.send_and_wait(settings.kafka.topic(topic), record, key=key, partition=where)
    await client.stop()


def identify(number: int) -> bytes:
    traits = {"email": f"c-{number}@customers.example.com", "firstName": "Maria", "consent": {"marketing": True}}
    body = {"messageId": f"m{number}", "type": "identify", "userId": f"c-{number}", "timestamp": iso(time.time()), "traits": traits}
    return json.dumps(body).encode()


def waiting() -> Intent:
    now = time.time()
    return Intent("i", "c-0", "welcome", "o", iso(now), iso(now + 3600), "", Facts(), Source("customer.events", 0, 0), iso(now))


def value(text: str, series: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series))


def test_everything_that_an_operator_looks_at(settings: Settings, tmp_path: Path) -> None:
    config = tmp_path / "mailtide.toml"
    config.write_text(CONFIG)
    server = mail_server.start(settings)
    common = {"MAILTIDE_CONFIG": str(config), "MAILTIDE_SMTP": f"smtp://127.0.0.1:{server.port}"}
    model = {"MAILTIDE_WRITER_BASE_MODEL": str(tiny()), "MAILTIDE_WRITER_ROWS": "2", "MAILTIDE_WRITER_THREADS": "1"}
    taken = str(server.port)  # by the mail server: a monitor beside another one finds its port so
    worker = Service("worker", ["worker"], settings, **common, **model)
    monitor = Service("monitor", ["monitor"], settings, **common, MAILTIDE_MONITOR_PORT=taken, MAILTIDE_MONITOR_INTERVAL="0.5")
    try:
        health = worker.url("worker-w0")
        lag = monitor.url("monitor").removesuffix("/metrics")
        assert get(health + "/health/live") == (200, '{"loop": true}\n')
        first = get(health + "/health/ready")
        assert first[0] == 503, f"ready before it can be: {first}"  # a group takes longer to join than a port to open
        until(lambda: get(health + "/health/ready")[0] == 200)
        until(lambda: get(lag + "/health/ready")[0] == 200)

        with prometheus(tmp_path / "prometheus", {"mailtide": health, "mailtide-monitor": lag}) as ask:
            names = [f"c-{number}" for number in range(CUSTOMERS)]
            asyncio.run(put(settings, EVENTS, *map(identify, range(CUSTOMERS)), b"no json", keys=names))
            until(lambda: value(get(health + "/metrics")[1], "mailtide_sender_outcomes_total{") >= CUSTOMERS)
            text = get(health + "/metrics")[1]
            assert value(text, 'mailtide_dead_letters_total{reason="not_json"}') == 1
            assert value(text, 'mailtide_events_total{result="read"}') == CUSTOMERS
            assert value(text, 'mailtide_intents_total{trigger="welcome"}') == CUSTOMERS
            assert value(text, 'mailtide_sender_outcomes_total{reason="",status="sent",trigger="welcome"}') == CUSTOMERS
            assert value(text, "mailtide_writer_mails_total{") == CUSTOMERS
            until(lambda: ask("query", 'kafka_lag_status{group=~".*mailtide-(intake|sender)"}')["result"])
            queries_all_run(ask, lambda query: "mailtide_waiting" not in query)
            groups = ask("rules")["groups"]
            wait = until(lambda: all(rule["health"] == "ok" for group in ask("rules")["groups"] for rule in group["rules"]))
            assert wait
            assert sum(len(group["rules"]) for group in groups) >= 20
            assert {alert["labels"]["alertname"] for alert in ask("alerts")["alerts"] if alert["state"] == "firing"} == set()

            assert worker.drain() < 10
            asyncio.run(put(settings, INTENTS, encode(waiting())))  # for a writer that is gone
            queries_all_run(ask, lambda query: "mailtide_waiting" in query)
        assert monitor.drain() < 10
    finally:
        worker.kill()
        monitor.kill()
        server.stop()
    logs_have_their_place(worker, monitor, taken)


def test_the_trainer_says_when_it_is_ready_and_drains(settings: Settings) -> None:
    trainer = Service("trainer", ["train"], settings, MAILTIDE_WRITER_BASE_MODEL=str(tiny()))
    try:
        url = trainer.url("trainer")
        assert get(url + "/health/live")[0] == 200
        until(lambda: get(url + "/health/ready")[0] == 200)
        assert "process_resident_memory_bytes" in get(url + "/metrics")[1]
        assert trainer.drain() < 10
        assert not [line for line in trainer.lines() if line["event"] == "drain_cut_short"]
    finally:
        trainer.kill()


def queries_all_run(ask: Callable[[str, str], Any], chosen: Callable[[str], bool]) -> None:
    """And each has an answer."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    left = [query.replace("$__rate_interval", "20s").replace("$group", ".*") for query in queries if chosen(query)]
    assert left

    def tried() -> bool:
        left[:] = [query for query in left if not ask("query", query)["result"]]
        return not left

    try:
        until(tried, 60)
    except AssertionError:
        raise AssertionError(f"no answer to {left}") from None


def logs_have_their_place(worker: Service, monitor: Service, taken: str) -> None:
    lines = [*worker.lines(), *monitor.lines()]
    assert not [line for line in lines if line["event"] == "drain_cut_short"]
    placed = [line for line in lines if {"group", "topic", "partition"} <= line.keys()]
    assert {line["group"].rsplit("-", 1)[1] for line in placed} >= {"intake", "writer", "sender", "clusters"}
    assert any("offset" in line for line in placed)
    assert [line["port"] for line in lines if line["event"] == "port_taken"] == [int(taken)]
    assert "Maria" not in worker.log.read_text()
    assert "@customers" not in worker.log.read_text()
