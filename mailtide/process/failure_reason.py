"""What a command says last of an error that ends it, and why a process died, from what it logged last."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from schemas.errors import MailtideError

LONGEST = 64 << 10  # bytes read from the end: a traceback with its notes is shorter
WORDS = 800  # characters of it that a supervisor repeats: the longest mend is some 600

JAVA = re.compile(r"\[[^\]]*\] (TRACE|DEBUG|INFO|WARN|ERROR) (\S+ - .+)")  # slf4j-simple's line: [thread] LEVEL logger - words


def words(error: BaseException) -> str:
    """One line for an error that a user can cause or mend; "" for a mistake of ours, whose traceback is wanted."""
    if isinstance(error, MailtideError):
        return str(error)
    if isinstance(error, OSError):
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or str(error) or type(error).__name__}"
    if type(error).__module__.startswith(("aiokafka.", "kafka.")):
        refused = type(error).__name__ == "MessageSizeTooLargeError"  # Kafka runs: a topic takes less than Mailtide declares
        mend = "raise what 'mailtide topics check' names" if refused else "see that it runs"
        return f"Kafka failed ({' '.join(str(error).split())}): {mend}, then start again"
    return ""


def cause(log: Path, start: int, code: int) -> str:
    """Why a process died that ended with ``code``: its last words, or the signal of one that could say none."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL: by hand, or by the system for want of memory"
    return why(log, start) or (f"ended by {signal.Signals(-code).name}" if code < 0 else "it said nothing")


def why(log: Path, start: int = 0) -> str:
    """One line: the last error in what ``log`` holds from byte ``start`` on, else its last line; empty where there is none."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start if start <= end else 0, end - LONGEST))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    told = [line for line in map(_told, lines) if line[1]]
    errors = [text for error, text in told if error]
    return (errors or [text for _, text in told] or [""])[-1][:WORDS]


def _told(line: str) -> tuple[bool, str]:
    """Whether the line tells an error, and what it says; a traceback's own lines say nothing."""
    if line.startswith("mailtide: "):
        return True, line.removeprefix("mailtide: ")
    if java := JAVA.match(line):
        return java[1] == "ERROR", java[2]
    try:
        record = json.loads(line)
    except ValueError:
        name = line.split(":")[0]
        return name.endswith(("Error", "Exception", "Unavailable")) and " " not in name, line.strip() if line[:1].strip() else ""
    if not isinstance(record, dict):
        return False, line.strip()
    lasts = str(record.get("exception") or "").strip().splitlines()[-1:]
    said = [str(record.get("event", "")), str(record.get("error") or ""), *lasts]
    return record.get("level") in ("error", "critical"), ": ".join(part for part in said if part)
