"""A file of events, one JSON object a line, published in the order of its times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from mailtide.replay.sources.dated import Dated
from mailtide.replay.sources.names import draw
from schemas.errors import SourceError
from schemas.events import Dead, decode

ZONE = UTC
_DAY = 86_400


class _Line(NamedTuple):
    at: float
    customer: str
    start: int
    size: int


def events(path: str, days: int | None = None, customers: int | None = None) -> Iterator[Dated]:
    """The file's events by time; those of one time stay as the file has them.

    The whole file is checked first, so that a bad line leaves nothing half
    published: SourceError with its number. Only places and times are kept in
    memory, some 150 bytes a line.
    """
    try:
        with Path(path).open("rb") as file:
            lines = _chosen(_read(path, file), days, customers)
            for line in lines:
                file.seek(line.start)
                yield Dated(line.at, line.customer, msgspec.json.decode(file.read(line.size), type=dict))
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror}") from error


def _read(path: str, file: BinaryIO) -> list[_Line]:
    lines: list[_Line] = []
    ids: dict[str, str] = {}  # one string for each customer, not for each line
    start = 0
    for number, raw in enumerate(file, 1):
        place, start = start, start + len(raw)
        if not raw.strip():
            continue
        read = decode(raw, math.inf)
        if isinstance(read, Dead):
            raise SourceError(f"{path}, line {number}: {read.reason}: {read.detail}; mend the line or take it out")
        try:
            msgspec.json.decode(raw, type=dict)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SourceError(f"{path}, line {number}: not_json: {error}; mend the line or take it out") from None
        lines.append(_Line(read.at, ids.setdefault(read.customer, read.customer), place, len(raw)))
    lines.sort(key=lambda line: line.at)
    return lines


def _chosen(lines: list[_Line], days: int | None, customers: int | None) -> list[_Line]:
    if days is not None and lines:
        end = (lines[0].at // _DAY + days) * _DAY
        lines = [line for line in lines if line.at < end]
    if customers is not None:
        kept = set(sorted({line.customer for line in lines}, key=lambda customer: draw("chosen", customer))[:customers])
        lines = [line for line in lines if line.customer in kept]
    return lines
