"""Children that can't outlive us: on Linux the kernel ends them when the parent dies, however it dies."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1  # prctl(2)
LONGEST_PAUSE = 30.0  # seconds before one that keeps dying is tried again

# Looked up here: between fork and exec of a process with threads nothing may be loaded.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _die_with_parent(parent: int, signum: int) -> None:
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died before the kernel was told to watch it
            os.kill(os.getpid(), signal.SIGKILL)


def pause(deaths: int) -> float:
    """Seconds before one that died so many times is started again: each time longer."""
    return min(0.5 * 2.0 ** min(deaths - 1, 10), LONGEST_PAUSE)  # the power of some thousand deaths would be no number


def spawn(
    command: Sequence[str], log: Path | IO[bytes], *, env: dict[str, str] | None = None, last: int = signal.SIGKILL
) -> subprocess.Popen[bytes]:
    """Start ``command`` with both outputs appended to ``log``; ``last`` is the signal it gets when we die.

    Call from a thread that outlives the child, such as the main one: the kernel watches the thread that forked.
    Ctrl-C reaches only us (the child has its own process group), so that we stop children in order.
    """
    out, parent = log.open("ab") if isinstance(log, Path) else log, os.getpid()

    def tie() -> None:
        _die_with_parent(parent, last)

    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, process_group=0, preexec_fn=tie)
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
