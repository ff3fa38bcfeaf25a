"""A server that dies is started again in the same place; here it is a small process, the real broker is in tests/broker."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailtide.local import restarting
from mailtide.local.restarting import RestartingServer
from mailtide.process import failure_reason
from mailtide.process.children import pause, spawn
from mailtide.process.shutdown import Halt
from schemas.errors import KafkaUnavailable

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
Died = subprocess.Popen[bytes]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No pause, and how many deaths each was asked for."""
    asked: list[int] = []
    monkeypatch.setattr(restarting, "LOOK", 0.01)
    monkeypatch.setattr(restarting, "pause", lambda deaths: asked.append(deaths) or 0.0)
    return asked


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Callable[..., RestartingServer]]:
    made: list[RestartingServer] = []
    log = tmp_path / "broker.log"

    def make(launch: Callable[[], Died] | None = None, **more: object) -> RestartingServer:
        again = launch or (lambda: spawn(SLEEPS, log))
        args = {"answers": lambda process, _done: process.poll() is None, "halted": lambda: False} | more
        made.append(RestartingServer("kafka", spawn(SLEEPS, log), again, output=log, **args))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop(30.0)
        assert each.process.poll() is not None
        assert not each._thread.is_alive()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def test_what_dies_is_started_again_and_the_log_says_so(
    kept: Callable[..., RestartingServer], impatient: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    one = kept()
    for deaths in (1, 2):
        first = one.process
        first.kill()
        until(lambda first=first: one.process is not first)
        assert one.deaths == deaths
    one.stop(30.0)
    said = capsys.readouterr().out
    assert said.count("service_died") == said.count("killed by SIGKILL") == 2
    assert said.count("service_restarted") == 2
    assert str(one._output) in said
    assert impatient == [1, 2]


def test_one_that_cant_be_launched_or_never_serves_is_tried_with_longer_pauses(
    kept: Callable[..., RestartingServer], impatient: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fates: list[Callable[[], Died]] = [lambda: spawn(SLEEPS, tmp_path / "x"), lambda: spawn(["false"], tmp_path / "x"), taken]
    one = kept(lambda: fates.pop()(), answers=lambda process, _done: process.args == SLEEPS or process.wait() == 0)
    one.process.kill()
    until(lambda: not fates and one.process.args == SLEEPS)
    one.stop(30.0)
    assert impatient == [1, 2, 3]
    assert "port 1 is taken" in capsys.readouterr().out


def taken() -> Died:
    raise KafkaUnavailable("port 1 is taken")


def test_no_start_outlasts_the_end(kept: Callable[..., RestartingServer], tmp_path: Path) -> None:
    begun = threading.Event()

    def answers(process: Died, over: Callable[[], bool]) -> bool:
        begun.set()
        until(lambda: over() and process.poll() is not None)  # `stop` ends it, for the one that waits may hang in a question
        return False

    one = kept(answers=answers)
    one.process.kill()
    assert begun.wait(60)
    one.stop(30.0)
    assert one.process.returncode == -signal.SIGKILL


def test_what_dies_while_all_ends_is_left_dead(kept: Callable[..., RestartingServer], impatient: list[int]) -> None:
    looked = threading.Semaphore(0)

    def halted() -> bool:
        looked.release()
        return True

    one = kept(halted=halted)
    one.process.kill()
    one.process.wait()
    assert all(looked.acquire(timeout=60) for _ in range(3))
    assert impatient == []


def test_pauses_grow_and_end_growing() -> None:
    assert [pause(deaths) for deaths in (1, 2, 3, 6, 7, 5000)] == [0.5, 1.0, 2.0, 16.0, 30.0, 30.0]


def test_a_halt_counts_from_its_first_word() -> None:
    halt = Halt()
    assert halt.left(9.0) == 9.0
    halt.set()
    since = halt.since
    halt.set()
    assert halt.is_set()
    assert halt.since == since > 0
    assert halt.left(9.0) <= 9.0
    assert halt.left(0.0) == 0.0


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (1, "[main] ERROR kafka.Kafka - disk full\n[main] WARN kafka.Kafka - bye\n", "kafka.Kafka - disk full"),
        (1, "java.io.IOException: No space left on device\n\tat java.base/x\n", "java.io.IOException: No space left on device"),
        (-9, "[main] ERROR kafka.Kafka - of yesterday\n", "killed by SIGKILL: by hand, or by the system for want of memory"),
        (-11, "", "ended by SIGSEGV"),
        (1, "", "it said nothing"),
    ],
)
def test_causes(code: int, text: str, expected: str, tmp_path: Path) -> None:
    (log := tmp_path / "broker.log").write_text(text)
    assert failure_reason.cause(log, 0, code) == expected
