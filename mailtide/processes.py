"""Children that can't outlive us: on Linux the kernel ends them when the parent dies, however it dies."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1  # prctl(2)


def _die_with_parent(signum: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)


def spawn(
    command: Sequence[str], log: Path | IO[bytes], *, env: dict[str, str] | None = None, last: int = signal.SIGKILL
) -> subprocess.Popen[bytes]:
    """Start ``command`` with both outputs appended to ``log``; ``last`` is the signal it gets when we die.

    Call from the main thread: the kernel watches the thread that forked.
    Ctrl-C reaches only us (the child has its own process group), so that we stop children in order.
    """
    out = log.open("ab") if isinstance(log, Path) else log
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, process_group=0, preexec_fn=lambda: _die_with_parent(last)
        )
    finally:
        if isinstance(log, Path):
            out.close()


def stop(process: subprocess.Popen[bytes], grace: float) -> int:
    """SIGTERM, then SIGKILL after ``grace`` seconds; the exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
