"""One event of a source, with what a replay must know of it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Dated(NamedTuple):
    """One event after the Segment spec, with its time (seconds since the epoch) and its customer."""

    at: float
    customer: str
    event: dict[str, Any]
