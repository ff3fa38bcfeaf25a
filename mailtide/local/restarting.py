"""A server of our own in the care of a thread: one that dies is started again where it was, and the log says so."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from mailtide.process.children import pause, stop
from mailtide.process.failure_reason import cause
from schemas.errors import MailtideError

LOOK = 0.25  # seconds between two looks whether it lives
LAST_SECONDS = 2.0  # for the thread to end once there is nothing left to keep

log = structlog.get_logger()


class RestartingServer:
    """``launch`` starts the server anew; ``answers`` waits until it serves, is told when to give up, and ends what it gave up.

    ``halted``: all is about to end, so that what dies is left dead: a start may take longer than the end.
    The thread lives as long as what it started: the kernel ends a child with the thread that forked it.
    """

    def __init__(
        self,
        service: str,
        process: subprocess.Popen[bytes],
        launch: Callable[[], subprocess.Popen[bytes]],
        answers: Callable[[subprocess.Popen[bytes], Callable[[], bool]], bool],
        output: Path,
        halted: Callable[[], bool],
    ) -> None:
        self.process, self.deaths = process, 0
        self._service, self._launch, self._answers, self._output = service, launch, answers, output
        self._halted = halted
        self._logged = self._length()  # of its log, when this start's words began
        self._starting, self._failed = False, ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {service}", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """End the server, within so many seconds, and the watch."""
        self._done.set()
        if self._starting:
            self.process.kill()  # it has taken nothing in since it died, so there is nothing to wait for
        stop(self.process, grace)
        self._thread.join(LAST_SECONDS)

    def _keep(self) -> None:
        while not self._done.wait(LOOK):
            if self.process.poll() is None or self._halted():
                continue
            self.deaths += 1
            code, wait = self.process.returncode, pause(self.deaths)
            told = {"why": self._failed or cause(self._output, self._logged, code), "log": str(self._output)}
            log.warning("service_died", service=self._service, code=code, restart_in_seconds=wait, **told)
            if not self._done.wait(wait) and not self._over():
                self._again()

    def _over(self) -> bool:
        return self._done.is_set() or self._halted()

    def _length(self) -> int:
        return self._output.stat().st_size if self._output.exists() else 0

    def _again(self) -> None:
        self._logged = self._length()
        try:
            self.process, self._failed, self._starting = self._launch(), "", True
            if self._answers(self.process, self._over):
                log.info("service_restarted", service=self._service, deaths=self.deaths)
        except (MailtideError, OSError) as error:  # its port is taken just now, or no memory for a process: counts as one more death
            self._failed = str(error)
        finally:
            self._starting = False
