"""The one gate that every mail passes at the moment of sending.

The rules, in the order in which they are asked; the first that refuses gives
the reason:

1. ``duplicate``: the intent has ended, or is being sent.
2. ``unsubscribed``: marketing mail to a customer who left.
3. ``complained``: any mail to a customer who called one spam.
4. ``bounced``: any mail to an address that is dead.
5. ``no_consent``: marketing mail without consent. Service mail (``marketing = false`` of its trigger) needs an address only.
6. ``no_address``: nowhere to send to.
7. ``condition_gone``: what made the trigger fire holds no longer; an order cancels the cart mail.
8. ``expired``: the use-by time has passed, or will have when the quiet hours end.
9. ``holdout``: marketing mail to the customers who get none, so that the mails' effect can be measured.
10. quiet hours in the customer's zone: the mail waits.
11. ``frequency_cap``: as many mails as a window admits.

What is final stands before what may yet change, so that a mail which waits for
the morning is asked again then, from the first rule on.

Two clocks: with ``wall`` all is measured at ``now``. With ``event`` a replay
runs a year in minutes: ``now`` counts from ``due`` on (the caller passes ``due +
(wall time - fired)``), quiet hours and the cap are measured at ``due``, and
quiet hours put the mail's time forward instead of holding it in real time.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

from schemas.config import SendingSettings, Settings
from schemas.mail import Draft, Intent, Reason, Standing, seconds


class Verdict(msgspec.Struct, frozen=True):
    """``send``; ``suppress`` with its reason; or ``wait`` until a moment (seconds since the epoch), then ask again.

    ``counted`` is the time by which a mail that is sent counts towards the cap.
    """

    action: Literal["send", "suppress", "wait"]
    reason: Reason | None = None
    until: float = 0.0
    counted: float = 0.0


class History(msgspec.Struct, frozen=True):
    """``ended``: this intent has an outcome or is being sent. ``sends``: times of the customer's other mails, ascending."""

    ended: bool = False
    sends: Sequence[float] = ()


def gate_time(intent: Intent, wall: float, clock: Literal["event", "wall"]) -> float:
    """The gate's ``now`` in seconds: wall time, or with the event clock ``due`` plus the real time that has passed since firing."""
    if clock == "wall":
        return wall
    return seconds(intent.due) + max(0.0, wall - seconds(intent.fired))


def decide(draft: Draft, standing: Standing | None, history: History, now: float, settings: Settings, gone: bool) -> Verdict:
    """What happens to this draft at ``now`` (see ``gate_time``); ``gone``: its condition holds no longer.

    A trigger that the settings don't know is marketing: the gate fails closed.
    """
    intent, sending = draft.intent, settings.sending
    marketing = next((trigger.marketing for trigger in settings.trigger if trigger.name == intent.trigger), True)
    final = _final(intent, standing, history, now, marketing, gone)
    if final is not None:
        return Verdict("suppress", final)
    if marketing and held_out(intent.customer, sending.holdout):
        return Verdict("suppress", "holdout")
    moment = now if settings.clock == "wall" else seconds(intent.due)
    zone = (standing.timezone if standing else "") or settings.shop.timezone
    opens = quiet_until(moment, zone, settings.shop.timezone, sending.quiet_start, sending.quiet_end)
    if opens is not None and opens >= seconds(intent.expires):
        return Verdict("suppress", "expired")
    if opens is not None and settings.clock == "wall":
        return Verdict("wait", until=opens)
    counted = opens if opens is not None else moment
    if not _ignores_cap(intent, sending) and over_cap(history.sends, counted, sending.cap, sending.cap_window):
        return Verdict("suppress", "frequency_cap")
    return Verdict("send", counted=counted)


def _final(intent: Intent, standing: Standing | None, history: History, now: float, marketing: bool, gone: bool) -> Reason | None:
    """Rules 1 to 8."""
    if history.ended:
        return "duplicate"
    refused = _refused(standing, marketing)
    if refused is not None:
        return refused
    if gone:
        return "condition_gone"
    return "expired" if now >= seconds(intent.expires) else None


def _refused(standing: Standing | None, marketing: bool) -> Reason | None:
    """Rules 2 to 6."""
    if standing is not None:
        if marketing and standing.unsubscribed:
            return "unsubscribed"
        if standing.complained:
            return "complained"
        if standing.bounced:
            return "bounced"
    if marketing and (standing is None or not standing.consent):
        return "no_consent"
    return "no_address" if standing is None or not standing.address else None


def foreseen(standing: Standing, customer: str, marketing: bool, holdout: float) -> Reason | None:
    """What the gate will say of a mail unless the standing changes: no model's time is worth such a mail."""
    return _refused(standing, marketing) or ("holdout" if marketing and held_out(customer, holdout) else None)


def _ignores_cap(intent: Intent, sending: SendingSettings) -> bool:
    return sending.care_ignores_cap and intent.priority == 0


def held_out(customer: str, share: float) -> bool:
    """Whether the customer belongs to the share that gets no marketing mail: the same answer for ever, on every machine."""
    if share <= 0.0:
        return False
    drawn = int.from_bytes(hashlib.blake2b(customer.encode(), digest_size=8, person=b"holdout").digest(), "big")
    return drawn < share * 2.0**64


def over_cap(sends: Sequence[float], at: float, cap: int, window: float) -> bool:
    """Whether one more mail at ``at`` makes more than ``cap`` within some window of that many seconds.

    A mail exactly one window ago counts no longer. ``sends`` is ascending and
    may hold later times: drafts overtake each other, and a replay's most of all.
    """
    if cap <= 0:
        return True
    near = sends[bisect.bisect_right(sends, at - window) : bisect.bisect_left(sends, at + window)]
    return any(max(near[i + cap - 1], at) - min(near[i], at) < window for i in range(len(near) - cap + 1))


def quiet_until(moment: float, zone: str, fallback: str, start: str, end: str) -> float | None:
    """When the quiet hours that hold ``moment`` end, in seconds; None outside them.

    ``start`` and ``end`` are local times ("21:00"); equal ones mean no quiet
    hours. A zone that is none falls back to the shop's. On the nights when the
    clocks change, the end is the first moment after ``moment`` at which the
    local clock shows a time outside the quiet hours.
    """
    opening, closing = time.fromisoformat(start), time.fromisoformat(end)
    place = _zone(zone, fallback)
    local = datetime.fromtimestamp(moment, place)
    if not _quiet(local.time(), opening, closing):
        return None
    for days in (0, 1, 2):
        day = local.date() + timedelta(days=days)
        for fold in (0, 1):
            # Through UTC, so that a time which the spring's change leaves out becomes the one after the gap.
            candidate = datetime.combine(day, closing, tzinfo=place).replace(fold=fold).astimezone(UTC).timestamp()
            if candidate > moment and not _quiet(datetime.fromtimestamp(candidate, place).time(), opening, closing):
                return candidate
    raise AssertionError(f"no end of the quiet hours {start}-{end} within two days")


def _quiet(clock: time, opening: time, closing: time) -> bool:
    if opening <= closing:
        return opening <= clock < closing
    return clock >= opening or clock < closing


@lru_cache(maxsize=1024)
def _zone(name: str, fallback: str) -> ZoneInfo:
    """The zone, else the shop's, else UTC: names come from events and may be anything."""
    for candidate in (name, fallback):
        try:
            return ZoneInfo(candidate)
        except (ValueError, OSError, KeyError):
            continue
    return ZoneInfo("UTC")
