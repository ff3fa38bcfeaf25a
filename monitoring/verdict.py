"""What a consumer's lag means: a pure function of a window of samples.

The states are Burrow's (core/internal/evaluator), with two that it lacks:
``DATA_LOSS`` for offsets that lie outside the log, ``UNKNOWN`` where there is
too little to judge by. Unlike Burrow's, the window is made of looks, not of
commits: it moves on while nothing is committed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FEWEST = 3  # samples before a trend is one


class State(StrEnum):
    """The verdict on one group's reading of one partition."""

    OK = "OK"
    WARN = "WARN"  # lag grows although it commits
    STALL = "STALL"  # members, lag, and no progress
    STOP = "STOP"  # lag, and nobody reads
    REWIND = "REWIND"  # the committed offset went back
    DATA_LOSS = "DATA_LOSS"  # committed below the log's start, or past the end of a log that was made anew
    UNKNOWN = "UNKNOWN"  # too little to judge by


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. ``at`` in seconds; ``committed`` was read before ``end``: past it, it is of another log."""

    at: float
    committed: int
    end: int
    start: int = 0

    @property
    def lag(self) -> int:
        """Records behind; never below 0."""
        return max(0, self.end - self.committed)


def judge(samples: Sequence[Sample], members: bool, rebalancing: bool = False, patience: float = 0.0, allowed: int = 0) -> State:
    """Verdict on a window, oldest sample first.

    ``members``: somebody is in the group. ``rebalancing``: the group has grace,
    nothing is expected of it. ``patience``: seconds that a window must span
    before members without progress are stalled, or growth is a trend.
    ``allowed`` records of lag are no lag.
    """
    if not samples:
        return State.UNKNOWN
    newest = samples[-1]
    if not newest.start <= newest.committed <= newest.end:
        return State.DATA_LOSS
    if newest.lag <= allowed:
        return State.OK
    if _went_back(samples):
        return State.REWIND
    if len(samples) < FEWEST:
        return State.UNKNOWN
    if rebalancing or any(sample.lag <= allowed for sample in samples):
        return State.OK
    patient = newest.at - samples[0].at >= patience
    if newest.committed == samples[0].committed:
        if not members:
            return State.STOP
        return State.STALL if patient else State.UNKNOWN
    return State.WARN if patient and _grows(samples) else State.OK


def _went_back(samples: Sequence[Sample]) -> bool:
    return any(later.committed < earlier.committed for earlier, later in itertools.pairwise(samples))


def _grows(samples: Sequence[Sample]) -> bool:
    """The newer half lies wholly above the older one: a wobble on the way up doesn't hide the trend, as it does in Burrow."""
    lags, half = [sample.lag for sample in samples], len(samples) // 2
    return min(lags[half:]) > max(lags[:half])


def rates(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """Records a second (produced, consumed) over the window; None before there is a window."""
    if len(samples) < 2 or samples[-1].at <= samples[0].at:
        return None
    seconds = samples[-1].at - samples[0].at
    return max(0, samples[-1].end - samples[0].end) / seconds, max(0, samples[-1].committed - samples[0].committed) / seconds


def drain_seconds(samples: Sequence[Sample]) -> float | None:
    """Seconds until the lag is gone at the present rates; 0 without lag, None where it doesn't drain."""
    if not samples:
        return None
    if samples[-1].lag == 0:
        return 0.0
    found = rates(samples)
    if found is None or found[1] <= found[0]:
        return None
    return samples[-1].lag / (found[1] - found[0])


def lag_seconds(samples: Sequence[Sample], now: float, record_time: float | None) -> float | None:
    """How old the next record to read is. 0 without lag.

    From the record's own timestamp where it could be read; else interpolated
    between two looks at the end offset, and never extrapolated before the
    first of them (klag #30 and kafka-lag-exporter #353 show where that leads).
    """
    if not samples:
        return None
    if samples[-1].lag == 0:
        return 0.0
    if record_time is not None:
        return max(0.0, now - record_time)
    target = samples[-1].committed
    for earlier, later in itertools.pairwise(samples):
        if earlier.end <= target < later.end:
            share = (target - earlier.end) / (later.end - earlier.end)
            return max(0.0, now - (earlier.at + share * (later.at - earlier.at)))
    return None
