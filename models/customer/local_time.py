"""Local time and quiet hours at the price of a look-up: a zone's distance from UTC changes on the quarter of an hour only."""

from __future__ import annotations

from datetime import datetime, time
from functools import lru_cache
from zoneinfo import ZoneInfo

from models.mail.gate import quiet_until
from schemas.errors import SettingsError

DAY = 86400.0
QUARTER = 900.0  # seconds; every change of a zone's offset since 1972 fell on a multiple
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


@lru_cache(maxsize=1024)
def zone(name: str, fallback: str = "UTC") -> ZoneInfo:
    """The IANA zone, or the fallback where there is no such zone."""
    try:
        return ZoneInfo(name or fallback)
    except (KeyError, ValueError, OSError):
        return zone(fallback, "UTC") if fallback != "UTC" else ZoneInfo("UTC")


@lru_cache(maxsize=1 << 16)
def _ahead(name: str, fallback: str, quarter: int) -> float:
    offset = datetime.fromtimestamp(quarter * QUARTER, zone(name, fallback)).utcoffset()
    return offset.total_seconds() if offset is not None else 0.0


def local(at: float, name: str, fallback: str) -> float:
    """Seconds since 1970-01-01 00:00 on the clock of the zone, at ``at`` (seconds since the epoch)."""
    return at + _ahead(name, fallback, int(at // QUARTER))


def local_day(at: float, name: str, fallback: str) -> int:
    """The calendar day of the zone, counted from 1970-01-01."""
    return int(local(at, name, fallback) // DAY)


class Quiet:
    """The quiet hours as seconds of the day, so that most moments are judged by a comparison. SettingsError where they are none."""

    def __init__(self, start: str, end: str, fallback: str) -> None:
        self.start, self.end, self.fallback = start, end, fallback
        self._from, self._to = seconds_of_day(start, "quiet_start"), seconds_of_day(end, "quiet_end")

    def awake(self, at: float, name: str) -> float:
        """``at``, or the end of the quiet hours of zone ``name`` that hold it."""
        clock = local(at, name, self.fallback) % DAY
        quiet = self._from <= clock < self._to if self._from <= self._to else clock >= self._from or clock < self._to
        if not quiet:
            return at
        end = float(round(at + (self._to - clock) % DAY))
        if local(end, name, self.fallback) % DAY == self._to:
            return end
        return quiet_until(at, name, self.fallback, self.start, self.end) or at  # the clocks change in that night


def seconds_of_day(clock: str, key: str) -> float:
    """Of a time of day such as "21:00"; SettingsError names ``sending.<key>`` where it is none."""
    try:
        found = time.fromisoformat(clock)
    except ValueError:
        raise SettingsError(f"sending.{key} = {clock!r} is no time of day; write it as '21:00'") from None
    return found.hour * 3600.0 + found.minute * 60.0 + found.second
