"""Health, drain and logs as an operator's tools see them."""

from __future__ import annotations

import fcntl
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from mailtide.local import broker, endpoints
from mailtide.process import failure_reason
from mailtide.services import health, supervisor
from monitoring.http import listen
from schemas.config import KafkaSettings, Settings
from schemas.errors import KafkaUnavailable, SettingsError
from streams.metrics import Stages, labelled, writing


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_ready_means_that_every_stage_is(tmp_path: Path) -> None:
    stages, joined = Stages(), threading.Event()
    with health.serving(
        Settings(home=str(tmp_path)), "worker-w0", health.Pulse().checks, lambda: stages.checks(["intake", "writer"])
    ) as probe:
        assert endpoints.read(tmp_path)["worker-w0"] == probe.url
        assert get(probe.url + "/health/live") == (200, '{"loop": true}\n')
        assert get(probe.url + "/health/ready") == (503, '{"intake": false, "writer": false}\n')
        with stages.watch("intake", lambda: True, list), stages.watch("writer", joined.is_set, list):
            assert get(probe.url + "/health/ready") == (503, '{"intake": true, "writer": false}\n')
            joined.set()
            assert get(probe.url + "/health/ready")[0] == 200
        assert get(probe.url + "/health/ready")[0] == 503  # a stage that ended serves no more
    assert "worker-w0" not in endpoints.read(tmp_path)


def test_a_loop_that_stands_still_is_not_alive() -> None:
    now = [100.0]
    pulse = health.Pulse(lambda: now[0])
    assert pulse.checks() == {"loop": True}
    now[0] += health.DEAD
    assert pulse.checks() == {"loop": False}


def test_a_taken_port_gives_way_to_a_free_one_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def nothing() -> dict[str, bool]:
        return {}

    first = listen("127.0.0.1", 0, "monitor", CollectorRegistry(), nothing, nothing)
    second = listen("127.0.0.1", first.port, "monitor", CollectorRegistry(), nothing, nothing)
    try:
        assert second.port != first.port
        said = capsys.readouterr().out
        assert said.count("\n") == 1
        assert "port_taken" in said
        assert str(second.port) in said
        assert get(second.url + "/health/ready")[0] == 503  # nothing is known to hold
    finally:
        first.close()
        second.close()


def test_a_host_that_is_not_ours_is_a_setting_to_mend() -> None:
    with pytest.raises(SettingsError, match=r"listen_host = '203\.0\.113\.7'"):
        listen("203.0.113.7", 0, "monitor", CollectorRegistry(), dict, dict)


def test_what_stages_count_is_what_prometheus_reads() -> None:
    stages, registry = Stages(), CollectorRegistry()
    registry.register(stages)
    shed = Counter({"pool": 3, "template": 2, "expired": 1})
    stats = {
        "waiting": 4,
        "tokens": 100,
        "busy_seconds": 1.5,
        "releases_refused": 0,
        "generated": 5,
        "pool": 6,
        "template": 7,
        "shed": shed,
        "guard_refused": {"claims": 2},
    }
    intake = Counter({"read": 10, "forwarded": 1})
    with (
        stages.watch("writer", lambda: True, lambda: writing(stats)),
        stages.watch("intake", lambda: False, lambda: labelled("mailtide_events_total", intake)),
    ):
        text = generate_latest(registry).decode()
    for line in (
        'mailtide_writer_shed_total{to="expired"} 1.0',
        'mailtide_writer_mails_total{origin="pool"} 6.0',
        'mailtide_events_total{result="read"} 10.0',
        'mailtide_stage_ready{stage="writer"} 1.0',
        'mailtide_stage_ready{stage="intake"} 0.0',
        "mailtide_writer_waiting 4.0",
    ):
        assert line in text.splitlines()
    assert generate_latest(registry).decode() == ""


def test_what_a_killed_process_left_in_endpoints_is_swept(tmp_path: Path) -> None:
    endpoints.sweep(tmp_path)
    assert not (tmp_path / "run").exists()
    with socket.create_server(("127.0.0.1", 0)) as alive, socket.create_server(("127.0.0.1", 0)) as closed:
        lives, dead = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (alive, closed))
        closed.close()
        smtp = dead.replace("http", "smtp")
        endpoints.put(tmp_path, kafka=lives.removeprefix("http://"), monitor=f"{dead}/metrics", smtp=smtp, **{"worker-w1": lives})
        endpoints.sweep(tmp_path)
        assert endpoints.read(tmp_path) == {"worker-w1": lives}  # another's broker may have the old one's port by now


def test_an_endpoint_is_listed_while_it_serves_and_another_s_is_left_alone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        one, two = (f"http://127.0.0.1:{server.getsockname()[1]}/metrics" for server in (first, second))
        with endpoints.listed(tmp_path, "monitor", one):
            with endpoints.listed(tmp_path, "monitor", two):
                assert endpoints.read(tmp_path) == {"monitor": two}
            assert endpoints.read(tmp_path) == {"monitor": one}
            endpoints.put(tmp_path, monitor=two)
        assert endpoints.answering(tmp_path, "monitor") == two
        second.close()
        assert endpoints.answering(tmp_path, "monitor") == ""
        with endpoints.listed(tmp_path, "monitor", one):
            pass
        assert endpoints.read(tmp_path) == {}  # what a killed one left doesn't come back
        assert endpoints.answering(tmp_path, "monitor") == ""


def test_a_broker_whose_parent_was_killed_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".lock"
    broker._let_go(tmp_path)
    lock.touch()
    program = f"import fcntl, time; f = open({str(lock)!r}, 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            with monkeypatch.context() as impatient:
                impatient.setattr(broker, "STOP_SECONDS", 0.0)
                with pytest.raises(KafkaUnavailable, match="another Kafka still uses"):
                    broker._let_go(tmp_path)
            killing = threading.Timer(0.2, holder.kill)
            killing.start()
            broker._let_go(tmp_path)
            assert holder.wait(60) < 0
        finally:
            holder.kill()


def test_a_broker_that_is_gone_while_its_process_lives_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "GONE_SECONDS", 0.0)
    monkeypatch.setattr(broker, "_answers", lambda *_: False)
    endpoints.put(tmp_path, kafka="127.0.0.1:1")
    with (tmp_path / "run" / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(KafkaUnavailable, match="its Kafka doesn't answer"), broker.reading(Settings(home=str(tmp_path))):
            pass


def run(program: str) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    return done, time.monotonic() - began


HANGS = """
import threading, time
from mailtide.process import logs, shutdown
logs.configure("info")
halt = threading.Event()
with shutdown.deadline(halt, "worker", 0.2):
    halt.set()
    time.sleep({seconds})
print("ended by itself")
"""


def test_a_drain_that_hangs_is_cut_off_and_says_so() -> None:
    done, seconds = run(HANGS.format(seconds=60))
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads(done.stderr)["event"] == "drain_cut_short"
    assert seconds < 55
    done, _ = run(HANGS.format(seconds=0))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "ended by itself", "")


FAILS = """
import asyncio, contextlib
from mailtide.local import broker
from mailtide.process import logs, shutdown
from mailtide.services import worker
from transport import topics
from schemas.config import KafkaSettings, Settings
from schemas.errors import StoreError
logs.configure("info")
shutdown.deadline.__wrapped__.__defaults__ = (0.2, 0, str)

async def deaf():
    while True:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            pass

async def serve(*_):
    serve.neighbour = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    raise {error}("the stage fell")

broker.running, topics.wait = contextlib.nullcontext, lambda _: None
worker._serve = lambda name: serve
worker.main(Settings(home={home!r}, kafka=KafkaSettings(bootstrap="127.0.0.1:1")), "sender")
"""


@pytest.mark.parametrize(
    ("error", "said"), [("StoreError", "the stage fell"), ("OSError", "the stage fell"), ("RuntimeError", "RuntimeError: the stage fell")]
)
def test_a_worker_that_failed_ends_though_a_task_won_t_and_says_why_last(tmp_path: Path, error: str, said: str) -> None:
    done, _ = run(FAILS.format(home=str(tmp_path), error=error))
    assert done.returncode == 1
    *logged, last = done.stderr.splitlines()
    assert [json.loads(line)["event"] for line in logged] == ["drain_cut_short"]
    assert last == f"mailtide: {said}"


def test_logs_are_json_with_the_records_place_and_nothing_else_of_extra() -> None:
    done, _ = run(
        "import logging, structlog; from mailtide.process import logs; logs.configure('info')\n"
        "place = {'group': 'g', 'topic': 't', 'partition': 3, 'offset': 42, 'email': 'maria@customers.example.com'}\n"
        "logging.getLogger('streams.intake.stage').info('partition taken over', extra=place)\n"
        "logging.getLogger('faust').info('step of a rebalance')\n"
        "logging.getLogger('aiokafka').warning('a broker is %s', 'gone')\n"
        "structlog.get_logger().info('lag_state', group='g', topic='t', partition=3, offset=42)\n"
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["partition taken over", "a broker is gone", "lag_state"]
    for line in (lines[0], lines[2]):
        assert (line["group"], line["topic"], line["partition"], line["offset"]) == ("g", "t", 3, 42)
        assert line["timestamp"]
        assert line["level"] == "info"
    assert "maria" not in done.stderr


def test_a_service_that_dies_says_why_and_where_its_log_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    services = {"intake": ["topics", "check"]}
    watch = supervisor.Supervisor(Settings(home=str(tmp_path), kafka=KafkaSettings(bootstrap="127.0.0.1:1")), services)
    log = tmp_path / "logs" / "intake.log"
    log.parent.mkdir()
    log.write_text("mailtide: of an earlier start\n")
    watch.start()
    try:
        assert watch.running[0].process is not None
        watch.running[0].process.wait(120)
        watch.tick()
    finally:
        watch.stop()
    said = capsys.readouterr().out
    assert "service_died" in said
    assert "no Kafka answers at 127.0.0.1:1: start it, or mend MAILTIDE_KAFKA" in said
    assert str(log) in said
    assert "earlier" not in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"event": "partition taken over", "level": "info"}\nmailtide: port 1 is taken\n', "port 1 is taken"),
        ('Traceback (most recent call last):\n  File "x", line 1\nValueError: no such thing\n', "ValueError: no such thing"),
        (
            '{"event": "store_failed", "level": "error", "error": "StoreError: full"}\n{"event": "bye", "level": "info"}',
            "store_failed: StoreError: full",
        ),
        ('{"event": "left", "level": "error", "exception": "Traceback\\n  File\\nKeyError: 1"}\n', "left: KeyError: 1"),
        ("Killed\n\n", "Killed"),
        ("", ""),
    ],
)
def test_last_words(text: str, expected: str, tmp_path: Path) -> None:
    log = tmp_path / "intake.log"
    assert failure_reason.why(log) == ""
    log.write_text("mailtide: earlier\n" + text)
    assert failure_reason.why(log, len("mailtide: earlier\n")) == expected


@pytest.mark.parametrize(("service", "seen"), [(False, False), (True, True)])
def test_kafka_pythons_errors_are_for_a_services_log_not_for_a_commands_user(service: bool, seen: bool) -> None:
    script = f"import logging; from mailtide.process import logs; logs.configure('info', {service}); "
    script += "logging.getLogger('kafka.net').error('closed')"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert ("closed" in said) is seen


@pytest.mark.parametrize(("level", "seen"), [("info", False), ("debug", True)])
def test_a_worker_tells_an_outage_once_and_its_libraries_of_each_try_only_at_debug(level: str, seen: bool) -> None:
    told = f"logs.configure('{level}'); logs.outages_told()"
    script = f"import logging; from mailtide.process import logs; {told}; logging.getLogger('aiokafka').error('gone')"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert ("gone" in said) is seen
