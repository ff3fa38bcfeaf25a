"""What ``mailtide replay`` can publish: each source yields ``Dated`` events in time order, the same ones every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path

from mailtide.replay.sources.dated import Dated
from schemas.errors import SourceError


@dataclass(frozen=True)
class Opened:
    """A source that is being read. ``zone`` is the one in which its days begin and end."""

    zone: tzinfo
    events: Iterator[Dated]


def known(source: str) -> None:
    """SourceError where there is no such source, or no such file: all that can be told before it is read."""
    if source in ("complete-journey", "cdnow"):
        return
    if not source.endswith(".jsonl"):
        raise SourceError(f"{source} is no source: complete-journey, cdnow or a file whose name ends in .jsonl")
    if not Path(source).is_file():
        raise SourceError(f"{source} can't be read: there is no such file")


def open_source(source: str, days: int | None = None, customers: int | None = None) -> Opened:
    """``complete-journey``, ``cdnow`` or a path that ends in ``.jsonl``.

    ``days`` counts from the source's first day; ``customers`` takes that many of
    those who are there in these days, by a hash of their id. SourceError where
    there is no such source or it can't be read.
    """
    known(source)
    # Imported late: pandas takes half a second that a file of events need not wait for.
    if source == "complete-journey":
        from mailtide.replay.sources import complete_journey

        return Opened(complete_journey.ZONE, complete_journey.events(days, customers))
    if source == "cdnow":
        from mailtide.replay.sources import cdnow

        return Opened(cdnow.ZONE, cdnow.events(days, customers))
    from mailtide.replay.sources import jsonl

    return Opened(jsonl.ZONE, jsonl.events(source, days, customers))
