"""The Kafka in use: the one that the settings name, else a real single-node Apache Kafka (KRaft) of our own."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from mailtide.local import endpoints
from mailtide.local.jars import java, kafka_jars
from mailtide.local.restarting import RestartingServer
from mailtide.process import logs
from mailtide.process.children import spawn, stop
from mailtide.process.shutdown import WHOLE, Halt
from schemas.config import Settings, kafka_python_options
from schemas.errors import KafkaUnavailable

START_SECONDS = 120.0  # a cold 2-core machine takes 5, a crowded one 30; a broker that dies is noticed at once
ASK_SECONDS = 3.0  # for an answer of one that starts: asked again and again, and not for so long that an end must wait for it
STOP_SECONDS = 20.0
LEAST_STOP_SECONDS = 1.0  # where a drain has used its time up; what a killed broker had taken in, it finds again
GONE_SECONDS = 30.0  # without an answer from a broker that did answer, after which it is no longer waited for: one that died comes back

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
delete.topic.enable=true
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
message.max.bytes=2097152
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
"""


def free_port() -> int:
    """A loopback port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def reachable(settings: Settings, timeout: float = 5.0) -> bool:
    """Whether a broker answers at the settings' bootstrap servers. SettingsError where they can't even be asked so."""
    options = kafka_python_options(settings.kafka)
    with logs.hushed("kafka"):
        return _answers(options, timeout)


def _answers(options: dict[str, Any], timeout: float) -> bool:
    from kafka.admin import KafkaAdminClient

    try:
        admin = KafkaAdminClient(
            **options,
            request_timeout_ms=int(timeout * 1000),
            bootstrap_timeout_ms=int(timeout * 1000),
        )
    except Exception:
        return False
    try:
        admin.describe_cluster()
    except Exception:
        return False
    finally:
        admin.close()
    return True


@contextlib.contextmanager
def running(settings: Settings, halt: Halt | None = None) -> Iterator[Settings]:
    """Settings whose ``kafka.bootstrap`` answers; an embedded broker started here is kept going, and stopped on leaving.

    Once ``halt`` is set, a start is given up, and a stop keeps to the drain's time.
    Raises KafkaUnavailable, in one line, where none answers, and SettingsError where a setting can't be used to ask.
    """
    if settings.kafka.bootstrap:
        if not reachable(settings):
            raise KafkaUnavailable(f"no Kafka answers at {settings.kafka.bootstrap}: start it, or mend MAILTIDE_KAFKA")
        yield settings
        return
    home = Path(settings.home)
    (home / "run").mkdir(parents=True, exist_ok=True)
    with (home / "run" / "kafka.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _of_another_process(settings)
            return
        endpoints.sweep(home)
        halted = halt.is_set if halt else _never
        process, bootstrap = start(settings, halted)
        ready = with_bootstrap(settings, bootstrap)
        keeper = _keeper(process, ready, halted)
        try:
            with endpoints.listed(home, "kafka", bootstrap):
                yield ready
        finally:
            keeper.stop(max(LEAST_STOP_SECONDS, halt.left(WHOLE)) if halt and halt.is_set() else STOP_SECONDS)


def _never() -> bool:
    return False


def _keeper(process: subprocess.Popen[bytes], ready: Settings, halted: Callable[[], bool]) -> RestartingServer:
    """Whoever knows the broker's port goes on with it."""
    port = int(ready.kafka.bootstrap.rsplit(":", 1)[1])
    same = msgspec.structs.replace(ready, kafka=msgspec.structs.replace(ready.kafka, port=port))
    keeper = RestartingServer(
        "kafka", process, lambda: launch(same)[0], lambda again, done: answers(again, ready, done), _log(ready), halted
    )
    keeper.start()
    return keeper


def _log(settings: Settings) -> Path:
    return Path(settings.home).resolve() / "kafka" / "broker.log"


@contextlib.contextmanager
def reading(settings: Settings) -> Iterator[Settings]:
    """As ``running``, for commands that only read: no Kafka is made for them in a folder that has none.

    Raises KafkaUnavailable there, too.
    """
    home = Path(settings.home)
    if not settings.kafka.bootstrap and not (home / "kafka" / "data" / "meta.properties").exists() and not held(home):
        raise KafkaUnavailable(f"no Mailtide data in {home.resolve()}; run in the shop's folder or set MAILTIDE_HOME / MAILTIDE_KAFKA")
    with running(settings) as ready:
        yield ready


def held(home: Path) -> bool:
    """Another process has this home's broker, or is about to start it."""
    try:
        with (home / "run" / "kafka.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def with_bootstrap(settings: Settings, bootstrap: str) -> Settings:
    """The same settings with this broker."""
    return msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, bootstrap=bootstrap))


def _of_another_process(settings: Settings) -> Settings:
    deadline, gone = time.monotonic() + START_SECONDS, 0.0
    while time.monotonic() < deadline:
        bootstrap = endpoints.read(Path(settings.home)).get("kafka")
        if isinstance(bootstrap, str):
            ready = with_bootstrap(settings, bootstrap)
            if reachable(ready):
                return ready
            gone = gone or time.monotonic()
            if time.monotonic() - gone > GONE_SECONDS:
                break
        time.sleep(0.2)
    raise KafkaUnavailable(f"another process holds {settings.home}/run/kafka.lock but its Kafka doesn't answer: stop that process")


def _let_go(data: Path) -> None:
    """Wait for the broker of a killed process, which may still be closing its files; KafkaUnavailable where it won't."""
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(FileNotFoundError), (data / ".lock").open("r+") as lock:
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as the broker locks it
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise KafkaUnavailable(f"another Kafka still uses {data}: stop it, then start again") from None
            time.sleep(0.1)


def start(settings: Settings, given_up: Callable[[], bool] = _never) -> tuple[subprocess.Popen[bytes], str]:
    """Start the broker and wait until it answers: the process and its bootstrap server. Raises KafkaUnavailable."""
    process, bootstrap = launch(settings)
    if answers(process, with_bootstrap(settings, bootstrap), given_up):
        return process, bootstrap
    raise KafkaUnavailable(f"Kafka did not start: read the last lines of {_log(settings)}")


def launch(settings: Settings) -> tuple[subprocess.Popen[bytes], str]:
    """Format the data folder once and start the broker, which doesn't answer yet."""
    folder = Path(settings.home).resolve() / "kafka"
    folder.mkdir(parents=True, exist_ok=True)
    _let_go(folder / "data")
    port = settings.kafka.port or free_port()
    if settings.kafka.port and not _can_bind(port):
        raise KafkaUnavailable(f"port {port} (kafka.port) is taken: choose another, or 0 for a free one")
    properties = folder / "server.properties"
    properties.write_text(PROPERTIES.format(port=port, controller=free_port(), data=folder / "data"))
    program, jars = java(), ":".join(map(str, kafka_jars()))
    # The second compiler and a concurrent collector pay after hours, and on cores to spare: in a burst of 3,000 mails on two cores
    # they took half of a core, and without them it ends in 21 s, not 29.
    small = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", f"-Xmx{settings.kafka.heap_mb}m"]
    command = [program, *small, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", jars]
    if not (folder / "data" / "meta.properties").exists():
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        formatted = subprocess.run(
            # joined by "=": an id that begins with "-" is taken for an option otherwise
            [*command, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)],
            capture_output=True,
            text=True,
            check=False,
        )
        if formatted.returncode:
            said = (formatted.stderr or formatted.stdout).strip().splitlines()
            raise KafkaUnavailable(f"Kafka can't use {folder}/data: {said[-1] if said else 'no reason given'}")
    return spawn([*command, "kafka.Kafka", str(properties)], _log(settings), last=signal.SIGTERM), f"127.0.0.1:{port}"


def answers(process: subprocess.Popen[bytes], ready: Settings, given_up: Callable[[], bool] = _never) -> bool:
    """Wait until this broker answers; where it doesn't, or is given up, it is ended."""
    port, deadline = int(ready.kafka.bootstrap.rsplit(":", 1)[1]), time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None and not given_up():
        if not _can_bind(port) and reachable(ready, ASK_SECONDS):
            return True
        time.sleep(0.1)
    stop(process, 1.0)
    return False


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
